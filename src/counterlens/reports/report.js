(() => {
  "use strict";
  const LIMIT = 0.5, DARKER = [33, 102, 172], BRIGHTER = [200, 50, 40];
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const source = (reference) =>
    reference[0] === "f"
      ? "data:image/png;base64," + data.frames[Number(reference.slice(1))]
      : byId(reference).src;
  document.documentElement.classList.add("js");
  for (const image of document.querySelectorAll("img[data-copy]")) image.src = source(image.dataset.copy);

  // Directions: tabs with arrow keys, Home and End.
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  const panels = tabs.map((tab) => byId(tab.getAttribute("aria-controls")));
  const select = (chosen, focus) => {
    tabs.forEach((tab, index) => {
      tab.setAttribute("aria-selected", String(index === chosen));
      tab.tabIndex = index === chosen ? 0 : -1;
      panels[index].hidden = index !== chosen;
    });
    if (focus) tabs[chosen].focus();
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => select(index, false));
    tab.addEventListener("keydown", (event) => {
      const next = {
        ArrowRight: (index + 1) % tabs.length,
        ArrowLeft: (index + tabs.length - 1) % tabs.length,
        Home: 0,
        End: tabs.length - 1,
      }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      select(next, true);
    });
  });
  if (tabs.length) select(0, false);

  // Which methods, and which queries of each direction, are shown.
  const filter = byId("filter");
  const boxes = [...document.querySelectorAll('input[name="method"]')];
  const show = () => {
    if (filter.value === "failed") for (const more of document.querySelectorAll(".more")) more.open = true;
    const left = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
    for (const panel of panels) {
      let shown = 0;
      const queries = panel.querySelectorAll(".query");
      for (const query of queries) {
        let failed = false;
        for (const tile of query.querySelectorAll("[data-method]")) {
          tile.hidden = left.has(tile.dataset.method);
          failed = failed || (!tile.hidden && tile.dataset.valid === "no");
        }
        query.hidden = filter.value === "failed" && !failed;
        shown += query.hidden ? 0 : 1;
      }
      panel.querySelector(".none").hidden = shown > 0 || queries.length === 0;
    }
  };
  for (const control of [filter, ...boxes]) control.addEventListener("change", show);

  // Paths: the slider swaps the image, its difference map and the confidences.
  const pixels = async (image) => {
    const loaded = new Image();
    loaded.src = image;
    await loaded.decode();
    const canvas = document.createElement("canvas");
    canvas.width = loaded.naturalWidth;
    canvas.height = loaded.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(loaded, 0, 0);
    return { canvas, context, values: context.getImageData(0, 0, canvas.width, canvas.height) };
  };
  const difference = async (query, answer) => {
    const before = await pixels(query), after = await pixels(answer);
    const a = before.values.data, b = after.values.data;
    for (let i = 0; i < a.length; i += 4) {
      const change = (b[i] + b[i + 1] + b[i + 2] - a[i] - a[i + 1] - a[i + 2]) / 765;
      const color = change < 0 ? DARKER : BRIGHTER;
      b[i] = color[0]; b[i + 1] = color[1]; b[i + 2] = color[2];
      b[i + 3] = Math.round(Math.min(1, Math.abs(change) / LIMIT) * 255);
    }
    after.context.putImageData(after.values, 0, 0);
    return after.canvas.toDataURL();
  };
  for (const tile of document.querySelectorAll("[data-path]")) {
    const slider = tile.querySelector("input");
    if (!slider) continue;
    const path = data.paths[tile.dataset.path];
    const output = tile.querySelector("output");
    const answer = tile.querySelector(".answer-picture");
    const change = tile.querySelector(".difference-picture");
    const query = tile.closest(".query").querySelector(".query-picture");
    const sources = path.frames.map(source);
    const last = path.frames.length - 1;
    const final = {
      answer: answer.src, change: change.src, alt: answer.alt, altChange: change.alt,
      numbers: ["source", "target"].map((role) => ({
        width: tile.querySelector(`.${role} .fill`).style.width,
        text: tile.querySelector(`.${role} .after`).textContent,
      })),
    };
    const update = async () => {
      const step = Number(slider.value), end = step === path.at;
      const where = path.position ? `k = ${path.position[step].toFixed(2)}` : `step ${step} of ${last}`;
      output.textContent = where;
      const said = [];
      ["source", "target"].forEach((role, index) => {
        const bar = tile.querySelector(`.bar.${role}`);
        const value = path[role][step];
        bar.querySelector(".fill").style.width = end ? final.numbers[index].width : `${value * 100}%`;
        bar.querySelector(".after").textContent = end ? final.numbers[index].text : value.toFixed(2);
        let words = `${tile.dataset[role]} ${value.toFixed(2)}`;
        if (path.intended) {
          words += ` (intended ${path.intended[role][step].toFixed(2)})`;
          output.textContent += `${index ? "," : "; intended"} ${path.intended[role][step].toFixed(2)}`;
        }
        said.push(words);
      });
      slider.setAttribute("aria-valuetext", `${where}: ${said.join(", ")}`);
      answer.src = end ? final.answer : sources[step];
      answer.alt = end ? final.alt : `The path at ${where}`;
      const drawn = end ? final.change : await difference(query.src, sources[step]);
      if (Number(slider.value) !== step) return;
      change.src = drawn;
      change.alt = end ? final.altChange : `What has changed at ${where}`;
    };
    slider.addEventListener("input", update);
    slider.value = String(path.at);
    update();
  }
})();
