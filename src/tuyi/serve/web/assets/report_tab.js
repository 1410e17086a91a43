// A dialogue as bubbles, with its pictures at their places; for the tabs Report and Label.
tuyi.said = (() => {
  const { make, word, number } = tuyi;
  const LONG = 700; // characters above which a text is folded

  function piece(one) {
    if ("text" in one) return make("p", {}, one.text);
    if (!one.uri) return make("div.missing", {}, one.name);
    const picture = make("img", { src: one.uri, alt: one.name, title: one.name, draggable: false });
    return make("button.shot", { type: "button", "aria-label": one.name, onclick: () => tuyi.files.enlarge(one.uri, one.name) }, picture);
  }

  function bubble(one) {
    const shown = make(`div.bubble.${one.side}`, {}, one.who && make("span.who", {}, one.who));
    for (const part of one.pieces) {
      if (part.text?.length > LONG) {
        const open = make("button.tuyi-quiet.unfold", { type: "button" }, word("said.long", { count: number(part.text.length) }));
        const text = make("p.folded", {}, part.text);
        open.addEventListener("click", () => {
          text.classList.remove("folded");
          open.remove();
        });
        shown.append(text, open);
      } else shown.append(piece(part));
    }
    return shown;
  }

  // `most`: bubbles that are shown at once, the newest; the others are folded away
  return (bubbles, most = Infinity) => {
    const shown = make("div.tuyi-said", {});
    const hidden = Math.max(0, bubbles.length - most);
    if (hidden > 1) {
      const earlier = make("details.earlier", {}, make("summary", {}, word("said.earlier", { count: number(hidden) })));
      earlier.append(...bubbles.slice(0, hidden).map(bubble));
      shown.append(earlier, ...bubbles.slice(hidden).map(bubble));
    } else shown.append(...bubbles.map(bubble));
    if (!bubbles.length) shown.append(make("p.soft", {}, word("said.empty")));
    return shown;
  };
})();

// The tab Report: scores, labels, confusions, and the worst mistakes.
tuyi.report = (() => {
  const { make, word, number, tag } = tuyi;
  const BUBBLES = 6;
  let server, place, summary, task;
  let asked = 0; // number of the last question about mistakes
  const chosen = { gold: "", predicted: "" };

  const share = (value, digits = 0) =>
    new Intl.NumberFormat(tag, { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
  const likely = (value) => (value < 0.001 ? `< ${share(0.001, 1)}` : share(value, 1));
  const three = (value) => value.toFixed(3);
  const interval = (score) => word("report.interval", { low: three(score.low), high: three(score.high) });

  function none() {
    const line = (text) => make("code", {}, text);
    return make("div.none", {},
      make("h2", {}, word("report.none")),
      make("p", {}, word("report.how")),
      make("pre", {}, line("tuyi predict MODEL test.json --out pred.jsonl\ntuyi evaluate pred.jsonl test.json --out evaluation\ntuyi serve MODEL --report evaluation")),
      make("p.soft", {}, word("report.kept")));
  }

  function card(title, score) {
    return make("div.score", {},
      make("div.name", {}, title),
      make("div.value", {}, three(score.value)),
      make("div.track", { "aria-hidden": "true" },
        make("i.fill", { style: `width: ${score.value * 100}%` }),
        make("i.span", { style: `left: ${score.low * 100}%; width: ${(score.high - score.low) * 100}%` })),
      make("div.soft", {}, interval(score)));
  }

  function headline() {
    const facts = [
      word("report.majority", { label: task.majority.label, score: three(task.majority.weighted_f1) }),
      task.ece === null ? null : word("report.believed", { ece: three(task.ece) }),
      word("report.level", { level: number(100 * summary.level) }),
    ].filter(Boolean);
    const unlabelled = task.unlabelled ? ` · ${word("report.unlabelled", { count: number(task.unlabelled) })}` : "";
    return make("section.headline", {},
      make("div.words", {},
        make("h2", {}, word("report.headline", { right: number(task.right), rows: number(task.rows) })),
        make("p.soft", {}, word("report.data", { data: summary.data }) + unlabelled)),
      make("div.scores", {},
        card(word("report.f1"), task.metrics.weighted_f1),
        card(word("report.accuracy"), task.metrics.accuracy),
        card(word("report.macro"), task.metrics.macro_f1),
        summary.tasks.length > 1 && card(word("report.overall"), summary.overall)),
      make("p.soft", {}, facts.join(tuyi.language === "zh" ? "" : " ")));
  }

  function labels() {
    const most = Math.max(...task.labels.map((one) => one.support), 1);
    const isEven = task.labels.every((one) => one.support === most);
    const head = { "report.label": "", "report.rows": ".r", "report.label_f1": "", "report.precision": ".r", "report.recall": ".r", "report.taken": "" };
    const rows = task.labels.map((one) => {
      const name = make("th", { scope: "row" }, one.label);
      const support = make("td.r.rows", {}, number(one.support), !isEven && make("i", { style: `width: ${(100 * one.support) / most}%` }));
      if (!one.support) return make("tr", {}, name, support, make("td.soft", { colSpan: 4 }, word("report.never", { count: number(one.predicted) })));
      const f1 = make("td.f1", { title: interval(one.f1) },
        make("span", {}, one.f1.value.toFixed(2)),
        make("span.track", {}, make("i.fill", { style: `width: ${one.f1.value * 100}%` }),
          make("i.span", { style: `left: ${one.f1.low * 100}%; width: ${(one.f1.high - one.f1.low) * 100}%` })));
      return make("tr", {}, name, support, f1,
        make("td.r", {}, one.predicted ? one.precision.toFixed(2) : "–"),
        make("td.r", {}, one.recall.toFixed(2)),
        make("td", {}, one.confused_with ? `${one.confused_with} ` : "–", one.confused_with && make("span.soft", {}, `× ${number(one.confused)}`)));
    });
    return make("section.labels", {},
      make("h3", {}, word("report.labels")),
      make("div.scroll", { tabIndex: 0, role: "region", "aria-label": word("report.labels") },
        make("table", {}, make("thead", {}, make("tr", {}, ...Object.entries(head).map(([key, kind]) => make(`th${kind}`, { scope: "col" }, word(key))))), make("tbody", {}, ...rows))),
      task.unused ? make("p.soft", {}, word("report.unused", { count: number(task.unused) })) : null);
  }

  function pairs() {
    const shown = make("section.pairs", {}, make("h3", {}, word("report.pairs")));
    if (!task.pairs.length) return shown.append(make("p.soft", {}, word("report.all_right"))), shown;
    const most = task.pairs[0].rows;
    const has = task.kept > 0;
    if (has) shown.append(make("p.soft", {}, word("report.pairs_hint")));
    shown.append(make("ul", {}, ...task.pairs.map((pair) =>
      make("li", {}, make("button", { type: "button", disabled: !has, onclick: () => choose(pair.gold, pair.predicted, true) },
        make("span.way", {}, pair.gold, make("span.arrow", {}, " → "), pair.predicted),
        make("span.soft", {}, word("report.of", { rows: number(pair.rows), of: number(pair.of) })),
        make("i", { style: `width: ${(100 * pair.rows) / most}%` }))))));
    return shown;
  }

  function near(one) {
    return make("div.near", {}, ...one.near.flatMap((label) => [
      make(`span.name${label.kind ? `.${label.kind}` : ""}`, {}, label.label, label.rank > 5 && make("span.soft", {}, ` #${label.rank}`)),
      make("span.track", { "aria-hidden": "true" }, make(`i.fill${label.kind ? `.${label.kind}` : ""}`, { style: `width: ${label.share * 100}%` })),
      make("span.r", {}, likely(label.share)),
    ]));
  }

  function mistake(one) {
    return make("article.mistake", {},
      make("header", {},
        make("dl", {},
          make("dt", {}, word("report.said")),
          make("dd.wrong", {}, one.predicted, one.confidence !== null && make("span.soft", {}, ` ${word("report.sure", { share: share(one.confidence) })}`)),
          make("dt", {}, word("report.gold")), make("dd.gold", {}, one.gold)),
        make("span.soft.id", {}, one.row === null ? one.id : word("report.row", { row: number(one.row) }))),
      tuyi.said(one.said, BUBBLES),
      one.near.length ? near(one) : null,
      one.rationale ? make("p.reason", {}, make("span.soft", {}, `${word("report.reason")} `), one.rationale) : null,
      ...Object.entries(one.notes).map(([key, count]) => make("p.note.soft", {}, word(`note.${key}`, { count: number(count) }))));
  }

  function select(key, name) {
    const names = task.labels.map((one) => one.label);
    const made = make("select", { onchange: () => choose(key === "gold" ? made.value : chosen.gold, key === "gold" ? chosen.predicted : made.value) },
      make("option", { value: "" }, word("report.all")), ...names.map((one) => make("option", { value: one }, one)));
    made.dataset.key = key;
    return make("label", {}, make("span.soft", {}, name), made);
  }

  function mistakes() {
    const shown = make("section.mistakes", {}, make("h3", {}, word("report.mistakes")));
    if (summary.missing) return shown.append(make("p.soft", {}, word({ predictions: "report.no_predictions", data: "report.no_data" }[summary.missing] || "report.changed"))), shown;
    if (!task.kept) return shown.append(make("p.soft", {}, word("report.all_right"))), shown;
    shown.append(
      make("p.soft", {}, word("report.mistakes_hint"), task.kept < task.rows - task.right ? ` ${word("report.surest", { count: number(task.kept) })}` : ""),
      make("div.filters", {}, select("gold", word("report.gold")), select("predicted", word("report.said")),
        make("button.tuyi-quiet.reset", { type: "button", hidden: true, onclick: () => choose("", "") }, word("report.reset")),
        make("span.count.soft", { role: "status" })),
      make("div.cards", {}),
      make("button.more", { type: "button", hidden: true, onclick: () => more() }, word("report.more")));
    return shown;
  }

  function choose(gold, predicted, isFar) {
    Object.assign(chosen, { gold, predicted });
    for (const one of place.querySelectorAll(".filters select")) one.value = chosen[one.dataset.key];
    place.querySelector(".filters .reset").hidden = !gold && !predicted;
    place.querySelector(".cards").replaceChildren();
    if (isFar) place.querySelector(".mistakes").scrollIntoView({ block: "start" });
    more();
  }

  async function more() {
    const cards = place.querySelector(".cards"), mine = ++asked;
    if (!cards) return;
    const begin = cards.querySelectorAll(".mistake").length;
    let found;
    try {
      found = await server.report_mistakes({ task: task.name, ...chosen, begin });
    } catch {
      if (mine === asked) lost(cards, more);
      return;
    }
    if (mine !== asked) return; // another filter was chosen meanwhile
    cards.querySelector(".lost")?.remove();
    cards.append(...found.mistakes.map(mistake));
    const shown = begin + found.mistakes.length;
    if (!found.total) cards.replaceChildren(make("p.soft", {}, word("report.nothing")));
    place.querySelector(".count").textContent = word("report.shown", { shown: number(shown), total: number(found.total) });
    place.querySelector(".more").hidden = shown >= found.total;
  }

  function lost(where, again) {
    where.querySelector(".lost")?.remove();
    where.append(make("p.lost", { role: "alert" }, `${word("report.lost")} `,
      make("button.tuyi-quiet", { type: "button", onclick: () => again() }, word("report.again"))));
  }

  async function download() {
    const { page } = await server.report_page({});
    const url = URL.createObjectURL(new Blob([page], { type: "text/html" }));
    make("a", { href: url, download: "report.html" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  function draw() {
    Object.assign(chosen, { gold: "", predicted: "" });
    const tasks = summary.tasks.length > 1 && make("div.tasks", { role: "group", "aria-label": word("report.task") }, ...summary.tasks.map((one) =>
      make("button", { type: "button", "aria-pressed": String(one === task), onclick: () => { task = one; draw(); } },
        one.name, make("span.soft", {}, ` ${three(one.metrics.weighted_f1.value)}`))));
    const shown = make("div.page", {}, tasks, headline(), make("div.two", {}, labels(), pairs()), mistakes());
    if (summary.page) shown.append(make("p", {}, make("button.tuyi-quiet.download", { type: "button", onclick: download }, word("report.download"))));
    place.replaceChildren(shown);
    more();
  }

  async function load() {
    place.replaceChildren(make("p.soft", {}, word("report.loading")));
    try {
      summary = await server.report_summary({});
    } catch {
      place.replaceChildren();
      lost(place, load);
      return;
    }
    if (summary.none) return place.replaceChildren(none());
    task = summary.tasks[0];
    draw();
  }

  function begin(element, given) {
    server = given;
    place = element.querySelector(".tuyi-report");
    load();
  }

  return { begin };
})();
