"""Tables, figures and the HTML report, made from finished results."""
