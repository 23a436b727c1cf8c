"""How datasets are fetched, read from common file formats and prepared."""
