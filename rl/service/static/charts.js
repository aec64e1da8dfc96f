// Reads a chart out: under the pointer, or step by step with the arrow keys. And colours tokens by what one chooses.

const SPACE = "http://www.w3.org/2000/svg";

function show(chart, index) {
  const points = JSON.parse(chart.dataset.points);
  index = Math.max(0, Math.min(points.x.length - 1, index));
  chart.dataset.index = index;
  let cursor = chart.querySelector(".cursor");
  if (!cursor) {
    cursor = chart.appendChild(document.createElementNS(SPACE, "line"));
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("y1", 8);
    cursor.setAttribute("y2", 168);
  }
  cursor.setAttribute("x1", points.at[index]);
  cursor.setAttribute("x2", points.at[index]);
  const values = points.lines
    .filter((line) => line.values[index] !== null)
    .map((line) => `${line.name} ${line.values[index]}`);
  const out = chart.parentElement.querySelector("output");
  if (out) out.textContent = `step ${points.x[index]}: ${values.join(", ")}`;
}

document.addEventListener("pointermove", (event) => {
  const chart = event.target.closest?.("svg.chart");
  if (!chart) return;
  const box = chart.getBoundingClientRect();
  const at = ((event.clientX - box.left) / box.width) * 400;
  const places = JSON.parse(chart.dataset.points).at;
  let best = 0;
  for (let index = 1; index < places.length; index += 1) {
    if (Math.abs(places[index] - at) < Math.abs(places[best] - at)) best = index;
  }
  show(chart, best);
});

document.addEventListener("keydown", (event) => {
  const chart = event.target.closest?.("svg.chart");
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!chart || !step) return;
  event.preventDefault();
  const last = JSON.parse(chart.dataset.points).x.length;
  show(chart, Number(chart.dataset.index ?? last) + step);
});

document.addEventListener("change", (event) => {
  if (event.target.name !== "colour") return;
  for (const one of document.querySelectorAll(".tokens")) one.className = `tokens by-${event.target.value}`;
});
