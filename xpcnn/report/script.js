"use strict";

/* The switch between light and dark; until it is used, the system decides. */
const root = document.documentElement;
const toggle = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
}

function showSwitch() {
  toggle.textContent = isDark() ? "Light theme" : "Dark theme";
  toggle.setAttribute("aria-pressed", String(isDark()));
}

toggle.hidden = false;
toggle.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  showSwitch();
});
system.addEventListener("change", showSwitch);
showSwitch();

/* Charts: the values under the pointer, or where the arrow keys lead. */
function nearest(points, x) {
  return points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
}

function liven(figure) {
  const data = JSON.parse(figure.dataset.chart);
  const plot = figure.querySelector(".plot");
  const cursor = figure.querySelector(".cursor");
  const tip = figure.querySelector(".tip");
  const places = [...new Set(data.series.flatMap((series) => series.points.map((point) => point[0])))];
  places.sort((a, b) => a - b);
  let at = places.length - 1;

  function line(series, x) {
    const value = nearest(series.points, x)[1];
    const row = document.createElement("div");
    const dot = document.createElement("i");
    dot.className = "c" + series.colour;
    const text = data.percent ? (100 * value).toFixed(2) + " %" : Number(value.toPrecision(4)).toString();
    row.append(dot, series.name + ": " + text);
    return row;
  }

  function show(index) {
    at = Math.max(0, Math.min(places.length - 1, index));
    const x = places[at];
    const share = data.end > data.start ? (x - data.start) / (data.end - data.start) : 0;
    const percent = 100 * share + "%";
    cursor.setAttribute("x1", percent);
    cursor.setAttribute("x2", percent);
    cursor.style.visibility = "visible";
    const heading = document.createElement("b");
    heading.textContent = data.x + " " + x.toLocaleString("en");
    const there = data.series.filter(({ points }) => points[0][0] <= x && x <= points[points.length - 1][0]);
    tip.replaceChildren(heading, ...there.map((series) => line(series, x)));
    tip.hidden = false;
    const left = plot.getBoundingClientRect().left - plot.parentElement.getBoundingClientRect().left;
    const middle = left + share * plot.getBoundingClientRect().width;
    const room = plot.parentElement.clientWidth - tip.offsetWidth;
    const beside = share > 0.5 ? middle - tip.offsetWidth - 12 : middle + 12;
    tip.style.left = Math.max(0, Math.min(room, beside)) + "px";
  }

  function hide() {
    tip.hidden = true;
    cursor.style.visibility = "hidden";
  }

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const x = data.start + ((event.clientX - box.left) / box.width) * (data.end - data.start);
    show(places.indexOf(nearest(places.map((place) => [place]), x)[0]));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("focus", () => show(at));
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -places.length, End: places.length }[event.key];
    if (step) {
      show(at + step);
      event.preventDefault();
    } else if (event.key === "Escape") {
      hide();
    }
  });
}

document.querySelectorAll(".chart").forEach(liven);

/* Tables of classes: sorted by the column that is clicked. */
function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      const text = (row) => row.cells[column].textContent;
      const number = (row) => Number(text(row).replaceAll(",", ""));
      const order = column ? (a, b) => number(a) - number(b) : (a, b) => text(a).localeCompare(text(b), "en", { numeric: true });
      body.append(...[...body.rows].sort((a, b) => down * order(a, b)));
    });
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);
