// The tab Label: one row after another, by keyboard.
tuyi.label = (() => {
  const { make, word, number, tag } = tuyi;
  const KEYS = 9; // labels that have a digit
  const SETTLE_MS = 350; // after the order of labels changed by itself, keys wait, so that none hits what it was not meant for
  const LOOK_MS = 700;
  let server, desk, shown, walk;
  let row = null; // before the person
  let ranked = []; // its labels, as they are listed
  let busy = false;
  let settledAt = 0;
  let timer = null;

  const percent = (value) => (value < 0.001 ? `< 0.1 %` : new Intl.NumberFormat(tag, { style: "percent", maximumFractionDigits: value < 0.1 ? 1 : 0 }).format(value));
  const isVisible = () => desk.offsetParent !== null;

  function walkName() {
    // survives a reload of this tab, and is another in every other tab
    let name = sessionStorage.getItem("tuyi-walk");
    if (!name) {
      name = [...crypto.getRandomValues(new Uint8Array(12))].map((one) => one.toString(16).padStart(2, "0")).join("");
      sessionStorage.setItem("tuyi-walk", name);
    }
    return name;
  }

  // --- asking ---

  async function ask(act, more = {}) {
    if (busy) return;
    busy = true;
    clearTimeout(timer);
    try {
      const seen = row && shown.querySelector(".row") ? row.id : "";
      const found = await server.label_row({ act, walk, seen, ...more });
      if (found.none) return none();
      if (found.problem) return say(word(`label.problem.${found.problem}`), true);
      take(found, act);
    } catch {
      say(word("label.problem.lost"), true);
      timer = setTimeout(look, 3000);
    } finally {
      busy = false;
    }
  }

  const look = () => (isVisible() ? ask("look") : (timer = setTimeout(look, LOOK_MS)));

  function decide(action, label = "") {
    if (row && !busy) ask("decide", { id: row.id, revision: row.revision, action, label });
  }

  function take(found, act) {
    const before = row;
    const isSame = before && found.row && before.id === found.row.id && shown.querySelector(".row");
    const wasRead = before?.shares;
    row = found.row;
    progress(found);
    if (act !== "look" || found.told) say(found.told ? word(`label.told.${found.told}`) : "", found.told === "conflict");
    if (!row) {
      end(found.progress);
    } else if (!isSame) {
      draw();
      if (act !== "look") {
        desk.focus({ preventScroll: true });
        if (desk.getBoundingClientRect().top < 0) desk.scrollIntoView({ block: "start" });
      }
    } else if (act !== "look" || row.revision !== before.revision || !wasRead !== !row.shares || row.unread !== before.unread) {
      if (!wasRead && row.shares) settledAt = performance.now() + SETTLE_MS;
      choices();
    }
    const isReading = found.progress.read < found.progress.rows;
    if (row ? !row.shares && !row.unread : isReading) timer = setTimeout(look, LOOK_MS);
  }

  // --- showing ---

  function progress({ progress: now, file }) {
    const parts = [word("label.progress", { done: number(now.done), total: number(now.total) })];
    if (now.rate !== null) parts.push(word("label.rate", { rate: number(Math.round(now.rate)) }));
    if (now.skipped) parts.push(word("label.skipped", { count: number(now.skipped) }));
    if (now.read < now.rows) parts.push(word("label.read", { read: number(now.read), rows: number(now.rows) }));
    desk.querySelector(".how-far").textContent = parts.join(" · ");
    desk.querySelector(".track .fill").style.width = `${now.total ? (100 * now.done) / now.total : 0}%`;
    desk.querySelector(".file").textContent = word("label.file", { file });
  }

  function say(text, isBad = false) {
    const line = desk.querySelector(".told");
    line.textContent = text;
    line.classList.toggle("bad", isBad);
  }

  function draw() {
    const name = row.row === null ? row.id : word("report.row", { row: number(row.row) });
    shown.replaceChildren(
      make("section.row", { "aria-label": name, "data-id": row.id },
        make("header", {}, make("span.why", {}, word(`label.why.${row.why}`)), make("span.soft", {}, `${row.task} · ${name}`)),
        tuyi.said(row.said)),
      make("section.choices", { "aria-label": word("label.labels") }));
    choices();
  }

  function order() {
    const names = row.labels.map((one) => one.name);
    const shares = row.shares || {};
    return row.labels.map((one, at) => ({ ...one, at, share: shares[one.name] ?? null }))
      .sort((one, other) => (other.share ?? -1) - (one.share ?? -1) || names.indexOf(one.name) - names.indexOf(other.name));
  }

  function choices() {
    ranked = order();
    const field = shown.querySelector(".choices input")?.value || "";
    const given = make("dl.given", {}, make("dt", {}, word("label.given")), make("dd", {}, row.given || word("label.unlabelled")));
    if (row.suspected) {
      const sure = Number(row.suspected[1]);
      given.append(make("dt", {}, word("label.suspected")), make("dd", {}, row.suspected[0], sure ? make("span.soft", {}, ` ${percent(sure)} `) : " ", make("kbd", {}, "A")));
    }
    if (row.decided) given.append(make("dt", {}, word("label.decided")), make("dd.decided", {}, row.decided.action === "change" ? row.decided.label : word(`label.did.${row.decided.action}`)));
    const filter = make("input", { type: "search", value: field, placeholder: word("label.filter"), "aria-label": word("label.filter"), autocomplete: "off", spellcheck: false, oninput: list, onkeydown: typed });
    shown.querySelector(".choices").replaceChildren(
      given,
      row.shares ? "" : make("p.reading.soft", { role: "status" }, word(row.unread ? "label.unreadable" : "label.reading")),
      make("div.find", {}, filter, make("kbd", { "aria-hidden": "true" }, "/")),
      make("ol.list", {}),
      row.rationale ? make("p.reason", {}, make("span.soft", {}, `${word("report.reason")} `), row.rationale) : "");
    list();
  }

  function fitting() {
    const text = (shown.querySelector(".choices input")?.value || "").trim().toLowerCase();
    return text ? ranked.filter((one) => `${one.name}\n${one.about}`.toLowerCase().includes(text)) : ranked;
  }

  function list() {
    const text = shown.querySelector(".choices input").value.trim();
    const found = fitting();
    shown.querySelector(".list").replaceChildren(...found.map((one, at) => {
      const isGiven = one.name === row.given, isSuspected = one.name === row.suspected?.[0];
      const isChosen = row.decided && (row.decided.action === "change" ? one.name === row.decided.label : row.decided.action === "keep" && isGiven);
      const key = text ? (at ? "" : "↵") : at < KEYS ? String(at + 1) : "";
      return make(`li${isChosen ? ".chosen" : ""}`, {},
        make("button", { type: "button", title: one.about || null, onclick: () => decide("change", one.name) },
          make("kbd", {}, key),
          make("span.name", {}, one.name),
          isGiven && make("span.tag", {}, word("label.tag.given")),
          isSuspected && make("span.tag.audit", {}, word("label.tag.audit")),
          make("span.share", {}, one.share === null ? "" : percent(one.share)),
          make("i", { style: `width: ${(one.share || 0) * 100}%`, "aria-hidden": "true" })));
    }));
    if (!found.length) shown.querySelector(".list").append(make("li.soft.nothing", {}, word("label.no_such")));
  }

  function end(now) {
    const isReading = now.read < now.rows;
    shown.replaceChildren(make("section.end", {},
      make("h2", {}, word(isReading ? "label.wait" : now.skipped ? "label.end_skipped" : "label.end")),
      make("p.soft", {}, word(isReading ? "label.wait_more" : now.skipped ? "label.end_skipped_more" : "label.end_more", { count: number(now.skipped), file: desk.querySelector(".file").textContent })),
      now.skipped ? make("button", { type: "button", onclick: () => ask("again") }, word("label.again"), " ", make("kbd", {}, "R")) : null));
    desk.focus({ preventScroll: true });
  }

  function none() {
    desk.replaceChildren(make("div.none", {},
      make("h2", {}, word("label.none")),
      make("p", {}, word("label.how")),
      make("pre", {}, make("code", {}, "tuyi serve MODEL --label rows.jsonl\ntuyi serve MODEL --label train.json --audit audit"))));
    document.removeEventListener("keydown", pressed);
  }

  // --- keys ---

  const isField = (one) => one.closest?.("input, textarea, select, [contenteditable='true'], [contenteditable='']");

  const deeds = {
    k: () => decide("keep"),
    d: () => decide("drop"),
    a: () => row?.suspected && decide("change", row.suspected[0]),
    s: () => row && ask("skip", { id: row.id }),
    arrowright: () => row && ask("skip", { id: row.id }),
    arrowleft: () => ask("back"),
    u: () => ask("undo"),
    r: () => !row && ask("again"),
    "/": () => {
      const field = shown.querySelector(".choices input");
      field?.focus();
      field?.select();
    },
    enter: () => first(),
  };

  function first() {
    if (row?.shares && ranked.length) decide("change", ranked[0].name);
    else if (row) say(word("label.no_suggestion"));
  }

  function pressed(event) {
    if (!isVisible() || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (isField(event.target) || document.querySelector("dialog[open]")) return;
    const key = event.key.toLowerCase();
    // a button that has the focus is pressed by Enter itself
    if (key === "enter" && event.target.closest?.("button, a, summary")) return;
    const digit = /^[1-9]$/.test(key) ? Number(key) : 0;
    if (!digit && !(key in deeds)) return;
    event.preventDefault();
    if (event.repeat || busy) return;
    if ((digit || key === "enter") && performance.now() < settledAt) return;
    if (digit) {
      const one = row && fitting()[digit - 1];
      if (one) decide("change", one.name);
    } else deeds[key]();
  }

  function typed(event) {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.preventDefault();
      event.target.value = "";
      list();
      desk.focus({ preventScroll: true });
    } else if (event.key === "Enter") {
      event.preventDefault();
      const one = fitting()[0];
      if (one && event.target.value.trim()) {
        event.target.value = "";
        desk.focus({ preventScroll: true });
        decide("change", one.name);
      }
    } else if (event.key === "ArrowDown") {
      event.preventDefault();
      shown.querySelector(".list button")?.focus();
    }
  }

  function key(name, text, act) {
    return make("button.tuyi-quiet", { type: "button", onclick: () => { act(); desk.focus({ preventScroll: true }); } }, make("kbd", {}, name), " ", text);
  }

  function begin(element, given) {
    server = given;
    walk = walkName();
    desk = element.querySelector(".tuyi-desk");
    desk.tabIndex = -1;
    shown = make("div.desk", {});
    desk.replaceChildren(
      make("div.top", {}, make("div.track", { "aria-hidden": "true" }, make("i.fill", {})), make("p", {}, make("span.how-far", {}), make("span.file.soft", {}))),
      make("div.keys", {},
        key("↵", word("label.key.first"), first),
        make("span.soft", {}, make("kbd", {}, "1"), "–", make("kbd", {}, "9"), " ", word("label.key.digit")),
        key("K", word("label.key.keep"), deeds.k), key("D", word("label.key.drop"), deeds.d), key("S →", word("label.key.skip"), deeds.s),
        key("←", word("label.key.back"), deeds.arrowleft), key("U", word("label.key.undo"), deeds.u), key("/", word("label.key.find"), deeds["/"])),
      make("p.told", { role: "status" }),
      shown);
    document.addEventListener("keydown", pressed);
    new IntersectionObserver((seen) => {
      if (!seen.some((one) => one.isIntersecting)) return;
      // whoever opened the tab goes on by keys
      if (document.activeElement === document.body || document.activeElement?.getAttribute("role") === "tab") desk.focus({ preventScroll: true });
    }).observe(desk);
    ask("look");
  }

  return { begin };
})();
