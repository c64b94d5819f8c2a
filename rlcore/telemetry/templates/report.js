// A crosshair that follows the mouse over a chart and reads the nearest step out.
"use strict";

const tip = document.getElementById("tip");

function element(name, text, className) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function showTip(hover, index, event) {
  const rows = hover.series.filter(series => series.text[index] !== null).map(series => {
    const row = element("div");
    const label = element("span");
    label.append(element("i", "", "back" + series.slot % 8), series.label);
    row.append(label, element("b", series.text[index]));
    return row;
  });
  tip.replaceChildren(element("small", hover.steps[index]), ...rows);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = event.clientX + 16 + width > innerWidth ? event.clientX - width - 16 : event.clientX + 16;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, Math.min(event.clientY - height / 2, innerHeight - height - 4)) + "px";
}

function nearest(places, x) {
  let best = 0;
  places.forEach((place, index) => { if (Math.abs(place - x) < Math.abs(places[best] - x)) best = index; });
  return best;
}

for (const figure of document.querySelectorAll(".chart")) {
  const hover = JSON.parse(figure.dataset.hover);
  const svg = figure.querySelector("svg");
  const cross = svg.querySelector(".cross");
  const marks = svg.querySelector(".marks");

  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const index = nearest(hover.x, (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width);
    cross.removeAttribute("hidden");
    cross.setAttribute("x1", hover.x[index]);
    cross.setAttribute("x2", hover.x[index]);
    marks.replaceChildren(...hover.series.filter(series => series.y && series.y[index] !== null).map(series => {
      const mark = document.createElementNS(svg.namespaceURI, "circle");
      for (const [key, value] of Object.entries({ cx: hover.x[index], cy: series.y[index], r: 4, class: "fill" + series.slot % 8 }))
        mark.setAttribute(key, value);
      return mark;
    }));
    showTip(hover, index, event);
  });

  svg.addEventListener("pointerleave", () => {
    cross.setAttribute("hidden", "");
    marks.replaceChildren();
    tip.hidden = true;
  });
}
