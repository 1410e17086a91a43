"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 48;
const ID = 0, TASK = 1, GIVEN = 2, SUGGESTED = 3, ACTION = 6, NEW = 7, NOTE = 8;
const $ = (id) => document.getElementById(id);
const order = new Intl.Collator("zh", { numeric: true });
let page = 0, at = -1, shown = [];

/* what was decided, by id: {action, label, note} */
let decided = {};
try { decided = JSON.parse(localStorage.getItem(data.key)) || {}; } catch { /* a browser that keeps nothing */ }
function decide(id, change) {
  decided[id] = { action: "", label: "", note: "", ...decided[id], ...change };
  try { localStorage.setItem(data.key, JSON.stringify(decided)); } catch { /* as above */ }
  tellCount();
}

function make(kind, attributes, ...children) {
  const node = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function piece(part) {
  if ("text" in part) return make("p", {}, part.text);
  if ("uri" in part) return make("img", { class: "shot", src: part.uri, alt: part.name, title: part.name, loading: "lazy" });
  return make("div", { class: "missing" }, make("b", {}, part.name), part.problem);
}

function bars(card, line) {
  if (!card.near.length) return null;
  const rows = card.near.flatMap(([label, share]) => [
    make("div", {}, label),
    make("div", { class: "track" }, make("div", {
      class: "fill" + (label === line[GIVEN] ? " given" : label === line[SUGGESTED] ? " told" : ""), style: `width: ${share * 100}%`,
    })),
    make("div", { style: "text-align: right" }, share < 0.001 ? "< 0.1 %" : `${(share * 100).toFixed(1)} %`),
  ]);
  return make("div", { class: "near num" }, ...rows);
}

function draw(number) {
  const card = data.cards[number], line = data.lines[number], id = line[ID];
  const now = decided[id] || { action: "", label: "", note: "" };
  const choice = make("select", { "aria-label": "new label", onchange: () => act(number, "change", choice.value) });
  for (const label of data.labels[line[TASK]]) {
    if (label !== line[GIVEN]) choice.append(make("option", { selected: label === (now.label || line[SUGGESTED]) }, label));
  }
  const button = (action, text) =>
    make("button", { type: "button", class: now.action === action ? "on" : null, "aria-pressed": String(now.action === action),
      onclick: () => act(number, now.action === action ? "" : action, choice.value) }, text);
  const tags = [];
  if (card.kinds.includes("duplicate")) tags.push(make("span", { class: "tag" }, "same row, other label"));
  if (card.rare) tags.push(make("span", { class: "tag" }, "rare label"));
  return make("article", { class: `card issue ${now.action}${number === at ? " at" : ""}`, id: `issue-${number}` },
    make("header", {},
      make("dl", { class: "versus" }, make("dt", {}, "given"), make("dd", { class: "given" }, line[GIVEN]),
        make("dt", {}, "suggested"), make("dd", { class: "told" }, line[SUGGESTED])),
      make("span", { class: "soft num small", title: "severity" }, `#${number + 1} · ${card.severity.toFixed(2)}`)),
    make("div", { class: "chat" }, ...card.said.map((said) => make("div", { class: `bubble ${said.side}` },
      said.who ? make("span", { class: "who" }, said.who) : null, ...said.pieces.map(piece)))),
    bars(card, line),
    card.twins.length ? make("p", { class: "twins" }, make("span", { class: "soft" }, "shows the same: "),
      card.twins.map(([other, label]) => `${other} (${label})`).join(", ") + (card.more_twins ? ` and ${card.more_twins} more` : "")) : null,
    make("div", { class: "decide" }, button("keep", "Keep"), button("change", "Change"), button("drop", "Drop"),
      make("label", {}, "to ", choice),
      make("input", { value: now.note, placeholder: "note", "aria-label": "note", onchange: (event) => decide(id, { note: event.target.value }) })),
    make("p", { class: "soft small", style: "margin: 8px 0 0" }, make("code", {}, id), card.row ? ` · row ${card.row}` : "", ...tags));
}

function act(number, action, label) {
  const line = data.lines[number];
  decide(line[ID], { action, label: action === "change" && label !== line[SUGGESTED] ? label : "" });
  $(`issue-${number}`).replaceWith(draw(number));
}

function matches(number) {
  const line = data.lines[number], now = decided[line[ID]], words = $("search").value.trim().toLowerCase();
  if ($("task") && $("task").value && line[TASK] !== $("task").value) return false;
  if ($("given").value && line[GIVEN] !== $("given").value) return false;
  if ($("suggested").value && line[SUGGESTED] !== $("suggested").value) return false;
  if ($("state").value && ($("state").value === "done") !== Boolean(now && now.action)) return false;
  if (!words) return true;
  const texts = data.cards[number].said.flatMap((said) => said.pieces.map((part) => part.text || part.name));
  return [line[ID], ...texts].some((text) => text.toLowerCase().includes(words));
}

function tellCount() {
  const done = data.lines.filter((line) => decided[line[ID]] && decided[line[ID]].action).length;
  $("count").textContent = `${shown.length} of ${data.cards.length} shown · ${done} decided`;
}

function render() {
  const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
  page = Math.min(page, pages - 1);
  $("cards").replaceChildren(...shown.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(draw));
  $("page").textContent = `page ${page + 1} of ${pages}`;
  $("before").disabled = page === 0;
  $("after").disabled = page === pages - 1;
  tellCount();
}

function filter() {
  shown = data.cards.map((_, number) => number).filter(matches);
  page = 0; at = -1;
  render();
}

function turn(step) {
  page += step; at = -1;
  render();
  $("bar").scrollIntoView();
}

function go(step) {
  const place = shown.indexOf(at) + step;
  if (!shown.length || place < 0 || place >= shown.length) return;
  at = shown[at < 0 ? page * PER_PAGE : place];
  page = Math.floor(shown.indexOf(at) / PER_PAGE);
  render();
  $(`issue-${at}`).scrollIntoView({ block: "nearest" });
}

function cell(value) {
  return /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
}

function corrections() {
  const lines = data.lines.map((line) => {
    const now = decided[line[ID]] || { action: "", label: "", note: "" }, out = [...line];
    out[ACTION] = now.action; out[NEW] = now.label; out[NOTE] = now.note;
    return out;
  });
  return "\ufeff" + [data.columns, ...lines].map((line) => line.map(cell).join(",") + "\r\n").join("");
}

function fill(select, position) {
  const names = [...new Set(data.lines.slice(0, data.cards.length).map((line) => line[position]))].sort(order.compare);
  select.append(make("option", { value: "" }, "all"), ...names.map((name) => make("option", { value: name }, name)));
}

fill($("given"), GIVEN);
fill($("suggested"), SUGGESTED);
for (const id of ["task", "given", "suggested", "state"]) if ($(id)) $(id).addEventListener("change", filter);
$("search").addEventListener("input", filter);
$("reset").addEventListener("click", () => {
  for (const id of ["task", "given", "suggested", "state", "search"]) if ($(id)) $(id).value = "";
  filter();
});
$("before").addEventListener("click", () => turn(-1));
$("after").addEventListener("click", () => turn(1));
$("download").addEventListener("click", () => {
  const link = make("a", { href: URL.createObjectURL(new Blob([corrections()], { type: "text/csv" })), download: "corrections.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
for (const button of document.querySelectorAll(".heat button")) {
  button.addEventListener("click", () => {
    if ($("task")) $("task").value = button.dataset.task;
    $("given").value = button.dataset.given;
    $("suggested").value = button.dataset.suggested;
    $("state").value = ""; $("search").value = "";
    filter();
    $("bar").scrollIntoView();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = { 0: "", 1: "keep", 2: "change", 3: "drop" };
  if (event.key === "j" || event.key === "k") go(event.key === "j" ? 1 : -1);
  else if (event.key in actions && at >= 0) act(at, actions[event.key], $(`issue-${at}`).querySelector("select").value);
});
filter();
