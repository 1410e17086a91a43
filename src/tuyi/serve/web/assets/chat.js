// The tab Chat: what was said is kept here, in the browser, and sent whole with every message.
tuyi.chat = (() => {
  const { make, word, facts, files } = tuyi;
  const KEPT = "tuyi-chat";
  let talk = []; // {role, text, media: [{kind, url, name}], end?: "cut" | "stopped"}
  let draft = [];
  let number = 0;
  let asked = null;
  let trigger, log, box, strip, send, stop, problem, heat, most, answer, fresh, waiting;

  function message(turn) {
    if (turn.role === "assistant") return { role: "assistant", content: turn.text };
    if (!turn.media.length) return { role: "user", content: turn.text };
    const media = turn.media.map(({ kind, url }) => ({ type: `${kind}_url`, [`${kind}_url`]: { url } }));
    return { role: "user", content: turn.text ? [...media, { type: "text", text: turn.text }] : media };
  }

  function body() {
    const told = { messages: talk.filter((one) => one.role === "user" || one.text).map(message), stream: true, max_tokens: Number(most.value) };
    if (Number(heat.value) > 0) told.temperature = Number(heat.value);
    return JSON.stringify(told);
  }

  const many = (text) => new Blob([text]).size > facts.limits.body - 4096;

  function media(all, remove) {
    return make("div.tuyi-media", {}, ...all.map((one, at) => {
      const name = word(`frame.${one.kind === "video" ? "video" : "picture"}`, { number: at + 1 });
      const face = one.kind === "video"
        ? make("video", { src: one.url, controls: !remove, muted: true, preload: "metadata", "aria-label": one.name })
        : make("button.face", { type: "button", title: one.name, "aria-label": `${name}: ${one.name}`, onclick: () => files.enlarge(one.url, one.name) },
            make("img", { src: one.url, alt: "", onerror: (event) => event.target.replaceWith(make("span.broken", {}, one.name)) }));
      return make("span.tuyi-medium", {}, face,
        remove ? make("button.away", { type: "button", "aria-label": `${word("frame.remove")} ${name}`, onclick: () => remove(at) }, "×") : null);
    }));
  }

  function bubble(turn) {
    const said = make("div.said", {}, turn.text);
    const parts = [make("span.who", {}, word(turn.role === "user" ? "chat.you" : "chat.model"))];
    if (turn.media?.length) parts.push(media(turn.media));
    parts.push(said);
    if (turn.end) parts.push(make("p.end", {}, word(`chat.${turn.end}`)));
    return make(`article.tuyi-turn.${turn.role}`, {}, ...parts);
  }

  function draw() {
    log.replaceChildren(...(talk.length ? talk.map(bubble) : [make("p.tuyi-wait", {}, word("chat.empty"))]));
    fresh.disabled = !talk.length;
    down();
  }

  const down = () => log.scrollTo({ top: log.scrollHeight });

  function attach() {
    strip.replaceChildren(...(draft.length ? [media(draft, (at) => { draft.splice(at, 1); attach(); })] : []));
  }

  async function add(found) {
    const problems = [];
    draft.push(...(await files.take(found, ["image", "video"], (text) => problems.push(text))));
    attach();
    complain(problems.length ? { code: "said", message: problems.join(" ") } : null);
  }

  function complain(refusal, again) {
    problem.replaceChildren(...(refusal ? [tuyi.refused(refusal, true)] : []));
    if (again) problem.append(make("button.tuyi-plain", { type: "button", onclick: ask }, word("chat.again")));
  }

  function say() {
    const text = box.value.trim();
    if (asked !== null || (!text && !draft.length)) return;
    if (talk[talk.length - 1]?.role === "user") talk.pop(); // it was not answered; this takes its place
    talk.push({ role: "user", text, media: draft });
    if (many(body())) {
      talk.pop();
      draw();
      return complain({ code: "too_large" });
    }
    box.value = "";
    grow();
    draft = [];
    attach();
    ask();
  }

  function ask() {
    if (asked !== null) return;
    complain(null);
    draw();
    answer = { role: "assistant", text: "" };
    log.append(make("article.tuyi-turn.assistant.writing", {}, make("span.who", {}, word("chat.model")), make("div.said", {}, word("chat.thinking"))));
    down();
    asked = ++number;
    working(true);
    waiting = tuyi.ask(tuyi.chat, trigger, { ask: asked, body: body() });
  }

  function working(is) {
    if (!is) waiting?.end();
    send.hidden = is;
    stop.hidden = !is;
    log.setAttribute("aria-busy", String(is));
  }

  function end(how) {
    asked = null;
    working(false);
    if (how) answer.end = how;
    if (answer.text || how) talk.push(answer);
    draw();
    box.focus();
  }

  function told(value) {
    if (!value || value.ask !== asked) return;
    waiting.news();
    if (value.refusal) {
      const begun = Boolean(answer.text);
      end(begun ? "stopped" : null);
      return complain(placed(value.refusal), !begun && (value.refusal.status === 429 || value.refusal.status >= 500));
    }
    answer.text = value.text;
    const said = log.querySelector(".writing .said");
    const isLow = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    if (said && value.text) said.textContent = value.text;
    if (isLow) down();
    if (value.over) end(value.cut ? "cut" : null);
  }

  // Which of the talk's pictures it is
  function placed(refusal) {
    const at = /\bmessages\.(\d+)\.content\.(\d+)/.exec(refusal.param || refusal.message || "");
    if (!at) return refusal;
    const turn = talk.filter((one) => one.role === "user" || one.text)[Number(at[1])];
    const one = turn?.media?.[Number(at[2])];
    return one ? { ...refusal, place: tuyi.language === "zh" ? `“${one.name}”` : one.name } : refusal;
  }

  function lost(refusal) {
    if (asked === null) return;
    end(answer.text ? "stopped" : null);
    complain(refusal || { code: "lost" }, true);
  }

  function give_up() {
    if (asked === null) return;
    trigger("stop", {});
    end("stopped");
  }

  function renew() {
    if (asked !== null) give_up();
    talk = [];
    complain(null);
    draw();
    box.focus();
  }

  function grow() {
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight + 2, 220)}px`;
  }

  function start(element, fire) {
    trigger = fire;
    const root = element.querySelector(".tuyi-chat");
    if (!facts.chats) return root.replaceChildren(make("p.tuyi-wait", {}, word("chat.none")));
    asked = null;
    log = make("section.tuyi-log", { role: "log", "aria-live": "polite", tabIndex: 0 });
    box = make("textarea", { rows: 1, placeholder: word("chat.placeholder"), "aria-label": word("chat.placeholder"), oninput: grow });
    strip = make("div.tuyi-strip");
    problem = make("div.tuyi-problem", { "aria-live": "polite" });
    send = make("button.tuyi-main", { type: "button", onclick: say }, word("chat.send"));
    stop = make("button.tuyi-plain", { type: "button", hidden: true, onclick: give_up }, word("frame.stop"));
    fresh = make("button.tuyi-quiet", { type: "button", onclick: renew }, word("chat.new"));
    heat = make("input", { type: "range", min: 0, max: 1.5, step: 0.1, value: 0, "aria-label": word("chat.temperature") });
    most = make("input", { type: "number", min: 1, max: facts.limits.tokens, step: 1, value: Math.min(512, facts.limits.tokens), "aria-label": word("chat.tokens") });
    most.addEventListener("change", () => (most.value = Math.max(1, Math.min(facts.limits.tokens, Math.round(Number(most.value)) || 1))));
    const shownHeat = make("output", {}, "0");
    heat.addEventListener("input", () => (shownHeat.textContent = heat.value));
    const composer = make("div.tuyi-box", {}, strip, box,
      make("div.tuyi-tools", {},
        make("button.tuyi-plain", { type: "button", onclick: () => files.choose("image/*,video/*", true, add) }, word("chat.attach")),
        fresh, make("span.tuyi-space"), stop, send));
    root.replaceChildren(log, problem, composer,
      make("details.tuyi-more", {}, make("summary", {}, word("chat.more")),
        make("div.tuyi-settings", {},
          make("label.tuyi-field", {}, make("span", {}, word("chat.temperature")), heat, shownHeat, make("small", {}, word("chat.temperature_hint"))),
          make("label.tuyi-field", {}, make("span", {}, word("chat.tokens")), most))));
    listen(root, composer);
    restore();
    draw();
  }

  function listen(root, composer) {
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        say();
      }
    });
    root.addEventListener("paste", (event) => {
      const found = files.of(event.clipboardData);
      if (!found.length || event.clipboardData.getData("text/plain")) return;
      event.preventDefault();
      add(found);
    });
    root.addEventListener("dragover", (event) => {
      event.preventDefault();
      composer.classList.add("over");
    });
    for (const name of ["dragleave", "drop"]) root.addEventListener(name, () => composer.classList.remove("over"));
    root.addEventListener("drop", (event) => {
      const found = files.of(event.dataTransfer);
      if (!found.length) return;
      event.preventDefault();
      add(found);
    });
  }

  function keep() {
    if (box) sessionStorage.setItem(KEPT, JSON.stringify({ talk, text: box.value }));
  }

  function restore() {
    const kept = sessionStorage.getItem(KEPT);
    if (!kept) return;
    sessionStorage.removeItem(KEPT);
    const found = JSON.parse(kept);
    talk = found.talk;
    box.value = found.text;
  }

  return { start, told, lost, keep };
})();
