// The tab Classify: an editor with pictures among its text, and what the model says of it.
tuyi.classify = (() => {
  const { make, word, facts, files } = tuyi;
  const MARK = "<image>";
  const KEPT = "tuyi-classify";
  let number = 0; // of the last question
  let asked = null; // its number while it is answered
  let trigger, editor, result, go, stop, task, problem, begun, waiting;

  // --- the editor's content: texts and chips; a chip without a picture is a mark that waits for one ---

  function chip(picture) {
    const shown = make("span.tuyi-chip", { contentEditable: "false", draggable: true });
    shown.picture = picture;
    shown.addEventListener("dragstart", (event) => {
      dragged = shown;
      event.dataTransfer.setData("text/plain", "");
      event.dataTransfer.effectAllowed = "move";
    });
    shown.addEventListener("dragend", () => (dragged = null));
    return shown;
  }
  let dragged = null;

  const chips = () => [...editor.querySelectorAll(".tuyi-chip")];

  function renumber() {
    chips().forEach((one, at) => {
      const name = word("frame.picture", { number: at + 1 });
      one.replaceChildren();
      one.classList.toggle("empty", !one.picture);
      if (one.picture) {
        one.append(
          make("button.face", { type: "button", title: one.picture.name, "aria-label": `${name}: ${one.picture.name}`,
            onclick: () => files.enlarge(one.picture.url, one.picture.name) },
            make("img", { src: one.picture.url, alt: "", draggable: false,
              onerror: (event) => event.target.replaceWith(make("span.broken", {}, one.picture.name)) })),
        );
      } else {
        one.append(make("button.face", { type: "button", onclick: () => files.choose("image/*", false, (found) => fill(one, found)) },
          word("classify.slot", { number: at + 1 })));
      }
      one.append(
        make("span.number", { "aria-hidden": "true" }, String(at + 1)),
        make("button.away", { type: "button", "aria-label": `${word("frame.remove")} ${name}`, onclick: () => { one.remove(); changed(); } }, "×"),
      );
    });
  }

  function changed() {
    slots();
    renumber();
    const parts = content();
    editor.classList.toggle("bare", !parts.length);
    complain(null);
  }

  // Typed or pasted marks become slots
  function slots() {
    const walk = document.createTreeWalker(editor, NodeFilter.SHOW_TEXT, (node) =>
      node.data.includes(MARK) && !node.parentElement.closest(".tuyi-chip") ? NodeFilter.FILTER_ACCEPT : NodeFilter.FILTER_SKIP);
    const found = [];
    while (walk.nextNode()) found.push(walk.currentNode);
    for (const node of found) {
      const [first, ...rest] = node.data.split(MARK);
      const made = [first, ...rest.flatMap((text) => [chip(null), text])].filter((one) => one !== "");
      const last = made[made.length - 1];
      node.replaceWith(...made);
      if (document.activeElement === editor) after(last instanceof Node ? last : editor.lastChild);
    }
  }

  function after(node) {
    const range = document.createRange();
    range.setStartAfter(node);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
  }

  // [{text} or {picture}, …] in order
  function content() {
    const parts = [];
    const say = (text) => {
      if (!text) return;
      const last = parts[parts.length - 1];
      if (last && "text" in last) last.text += text;
      else parts.push({ text });
    };
    const walk = (parent) => {
      for (const node of parent.childNodes) {
        if (node.nodeType === 3) say(node.data);
        else if (node.classList?.contains("tuyi-chip")) parts.push({ picture: node.picture, chip: node });
        else if (node.nodeName === "BR") say(node === parent.lastChild && parent !== editor ? "" : "\n");
        else if (node.nodeType === 1) {
          if (/^(DIV|P)$/.test(node.nodeName) && parts.length) say("\n");
          walk(node);
        }
      }
    };
    walk(editor);
    const last = parts[parts.length - 1];
    if (last && "text" in last) last.text = last.text.replace(/\n$/, ""); // the browser keeps one open
    return parts.filter((one) => !("text" in one) || one.text.replaceAll("\u200b", "").length);
  }

  // --- putting pictures in ---

  function place(event) {
    // where the pointer is, inside the editor
    let range = null;
    if (document.caretPositionFromPoint) {
      const at = document.caretPositionFromPoint(event.clientX, event.clientY);
      if (at && editor.contains(at.offsetNode)) {
        range = document.createRange();
        range.setStart(at.offsetNode, at.offset);
      }
    } else range = document.caretRangeFromPoint?.(event.clientX, event.clientY);
    const into = range?.startContainer;
    const whole = (into?.nodeType === 3 ? into.parentElement : into)?.closest?.(".tuyi-chip");
    if (whole) {
      range = document.createRange();
      range.setStartAfter(whole);
    }
    return range && editor.contains(range.startContainer) ? range : null;
  }

  let caret = null; // where typing was last
  // Browsers tell of a changed selection late: where a place is needed, it is read there and then
  function remember() {
    const selection = getSelection();
    if (selection.rangeCount && editor?.contains(selection.anchorNode)) caret = selection.getRangeAt(0).cloneRange();
    if (!editor?.contains(caret?.startContainer)) caret = null;
    return caret;
  }
  document.addEventListener("selectionchange", remember);

  function put(nodes, range) {
    let into = range || remember();
    if (!editor.contains(into?.startContainer)) {
      into = document.createRange();
      into.selectNodeContents(editor);
      into.collapse(false);
      // the line that a browser keeps open at the end
      if (editor.lastChild?.nodeName === "BR") into.setStartBefore(editor.lastChild), into.collapse(true);
    }
    const whole = (into.startContainer.nodeType === 3 ? into.startContainer.parentElement : into.startContainer).closest(".tuyi-chip");
    if (whole) into.setStartAfter(whole);
    into.deleteContents();
    const box = document.createDocumentFragment();
    box.append(...nodes);
    const last = box.lastChild;
    into.insertNode(box);
    after(last);
    changed();
  }

  async function insert(found, range) {
    const problems = [];
    const pictures = await files.take(found, ["image"], (text) => problems.push(text));
    const empty = range ? [] : chips().filter((one) => !one.picture);
    while (pictures.length && empty.length) empty.shift().picture = pictures.shift();
    if (pictures.length) put(pictures.map(chip), range);
    changed();
    if (problems.length) complain({ code: "said", message: problems.join(" ") });
  }

  async function fill(slot, found) {
    const problems = [];
    const [first, ...rest] = await files.take(found, ["image"], (text) => problems.push(text));
    if (first) slot.picture = first;
    changed();
    if (rest.length) {
      const range = document.createRange();
      range.setStartAfter(slot);
      put(rest.map(chip), range);
    }
    if (problems.length) complain({ code: "said", message: problems.join(" ") });
  }

  function write(parts) {
    editor.replaceChildren(...parts.map((one) => (typeof one === "string" ? one : chip(one))));
    caret = null;
    changed();
  }

  // --- asking ---

  function complain(refusal) {
    problem.replaceChildren(...(refusal ? [tuyi.refused(refusal)] : []));
    chips().forEach((one) => one.classList.toggle("bad", one === refusal?.chip));
  }

  function body(parts) {
    const told = { parts: parts.map((one) => ("text" in one ? { text: one.text } : { image: one.picture.url })) };
    if (task.value) told.task = task.value;
    return JSON.stringify(told);
  }

  function run() {
    if (asked !== null) return;
    const parts = content();
    const pictures = parts.filter((one) => "picture" in one);
    if (!parts.some((one) => "picture" in one || one.text.trim())) return complain({ code: "said", message: word("classify.empty") });
    const missing = pictures.findIndex((one) => !one.picture);
    if (missing >= 0)
      return complain({ code: "said", message: word("classify.missing", { number: missing + 1 }), chip: pictures[missing].chip });
    const text = body(parts);
    if (new Blob([text]).size > facts.limits.body - 4096) return complain({ code: "too_large" });
    complain(null);
    asked = ++number;
    begun = parts;
    working(true);
    waiting = tuyi.ask(tuyi.classify, trigger, { ask: asked, body: text });
  }

  function working(is) {
    if (!is) waiting?.end();
    go.disabled = is;
    go.firstChild.textContent = word(is ? "classify.running" : "classify.go");
    stop.hidden = !is;
    result.classList.toggle("working", is);
    result.setAttribute("aria-busy", String(is));
  }

  function told(value) {
    if (!value || value.ask !== asked) return;
    asked = null;
    working(false);
    if (value.refusal) return refuse(value.refusal);
    show(value.answer);
  }

  function refuse(refusal) {
    const at = /\bparts\.(\d+)/.exec(refusal.param || refusal.message || "")?.[1];
    const part = at === undefined ? null : begun?.[Number(at)];
    if (part && "picture" in part) {
      const which = begun.filter((one) => "picture" in one).indexOf(part) + 1;
      refusal = { ...refusal, chip: part.chip, place: word("frame.picture", { number: which }) };
    }
    complain(refusal);
  }

  function lost(refusal) {
    if (asked === null) return;
    asked = null;
    working(false);
    complain(refusal || { code: "lost" });
  }

  function give_up() {
    if (asked === null) return;
    asked = null;
    working(false);
    trigger("stop", {});
    complain({ code: "said", message: word("frame.stopped") });
  }

  // --- the answer ---

  const percent = (value) => {
    if (value > 0 && value < 0.001) return "< 0.1%";
    if (value < 1 && value > 0.999) return "> 99.9%";
    return `${(100 * value).toFixed(1)}%`;
  };
  const seconds = (ms) => word("frame.seconds", { seconds: (ms / 1000).toFixed(ms < 10000 ? 2 : 1) });

  function bar([label, value], best, definition) {
    const share = Math.max(0, Math.min(1, value));
    return make("li", { className: label === best ? "best" : "", title: definition || "" },
      make("span.name", {}, label), make("span.value", {}, percent(value)),
      make("span.track", { "aria-hidden": "true" }, make("span.fill", { style: `width: ${(100 * share).toFixed(2)}%` })));
  }

  function show(answer) {
    const meanings = Object.fromEntries((facts.tasks.find((one) => one.name === answer.task)?.labels || []).map((one) => [one.name, one.definition]));
    const sorted = Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]);
    const isOpen = !sorted.length;
    const parts = [
      make("p.tuyi-kind", {}, word(isOpen ? "classify.answer" : "classify.label"), facts.tasks.length > 1 ? ` · ${answer.task}` : ""),
      make(isOpen ? "p.tuyi-open" : "p.tuyi-label", {}, answer.label),
    ];
    if (meanings[answer.label]) parts.push(make("p.tuyi-meaning", {}, meanings[answer.label]));
    if (answer.rationale !== null)
      parts.push(make("h3", {}, word("classify.reason")), make("p.tuyi-reason", {}, answer.rationale || word("classify.no_reason")));
    if (sorted.length) {
      const [first, rest] = sorted.length > 12 ? [sorted.slice(0, 10), sorted.slice(10)] : [sorted, []];
      const bars = (some) => make("ol.tuyi-bars", {}, ...some.map((one) => bar(one, answer.label, meanings[one[0]])));
      parts.push(make("h3", {}, word("classify.probabilities")), bars(first));
      if (rest.length) parts.push(make("details.tuyi-more", {}, make("summary", {}, word("classify.more", { count: rest.length })), bars(rest)));
    }
    const notes = ["dropped_turns", "shrunk_images", "cut_characters", "cut_free"].filter((key) => answer.notes[key]);
    if (notes.length)
      parts.push(make("ul.tuyi-notes", {}, ...notes.map((key) => make("li", {}, word(`note.${key}`, { count: tuyi.number(Number(answer.notes[key])) })))));
    parts.push(make("p.tuyi-took", {}, word("classify.took", { whole: seconds(answer.timing.total_ms), model: seconds(answer.timing.model_ms) })));
    result.replaceChildren(...parts);
    if (matchMedia("(max-width: 860px)").matches) result.scrollIntoView({ behavior: "smooth", block: "nearest" });
  }

  // --- the layout ---

  // In the language of the task's labels: dialogues where it is about such, else what its labels mean
  function examples() {
    const one = chosen();
    const isChinese = one.labels.length ? one.labels.some((label) => /[\u4e00-\u9fff]/.test(label.name)) : tuyi.language === "zh";
    const say = (key) => tuyiWords[key][isChinese ? 1 : 0];
    const drawn = (name, hue) => () => files.drawn(hue, say(`example.${name}`).split("|"));
    const meanings = one.labels.map((label) => label.definition || label.name);
    const all = one.isDialogue
      ? [[say("example.light")], [say("example.late"), drawn("order", 0)], [say("example.broken"), drawn("lamp", 3), drawn("box", 2)]]
      : [[MARK, drawn("lamp", 3)], ...meanings.slice(0, 1).map((text) => [text]), ...meanings.slice(1, 2).map((text) => [`${MARK}${text}`, drawn("order", 0)])];
    return all.map(([text, ...makers]) => {
      const texts = text.split(MARK);
      const short = texts.join(" ▣ ").split("\n")[0].replace(/^[^:：▣]{2,9}[:：]\s*/, "").trim();
      return make("button.tuyi-example", { type: "button", title: short === "▣" ? word("classify.insert") : short, onclick: () => {
        write(texts.flatMap((one, at) => (at < makers.length ? [one, makers[at]()] : [one])).filter((one) => one !== ""));
        editor.focus();
      } }, short);
    });
  }

  const chosen = () => facts.tasks.find((each) => each.name === task.value) || facts.tasks[0];

  function about() {
    const one = chosen();
    const names = one.labels.map((label) => label.name);
    return [one.about, names.length ? word("classify.labels", { count: names.length, names: names.join(tuyi.language === "zh" ? "、" : ", ") }) : ""]
      .filter(Boolean).join(" · ");
  }

  function start(element, fire) {
    trigger = fire;
    asked = null;
    editor = make("div.tuyi-editor.bare", { contentEditable: "true", role: "textbox", "aria-multiline": "true",
      "aria-label": word("classify.content"), "data-hint": word("classify.hint"), spellcheck: false });
    problem = make("div.tuyi-problem", { "aria-live": "polite" });
    go = make("button.tuyi-main", { type: "button", onclick: run }, make("span", {}, word("classify.go")), make("kbd", {}, word("classify.keys")));
    stop = make("button.tuyi-plain", { type: "button", hidden: true, onclick: give_up }, word("frame.stop"));
    result = make("section.tuyi-result", { "aria-live": "polite" }, make("p.tuyi-wait", {}, word("classify.waiting")));
    task = make("select", { id: "tuyi-task", onchange: turned },
      ...facts.tasks.map((one) => make("option", { value: one.name }, one.name)));
    const meaning = make("p.tuyi-about");
    const tries = make("div.tuyi-examples");
    function turned() {
      meaning.textContent = about();
      tries.replaceChildren(...examples());
    }
    turned();
    const chooser = facts.tasks.length > 1 ? make("label.tuyi-field", {}, make("span", {}, word("classify.task")), task) : null;
    element.querySelector(".tuyi-classify").replaceChildren(
      make("section.tuyi-ask", {},
        chooser, meaning,
        make("div.tuyi-box", {},
          editor,
          make("div.tuyi-tools", {},
            make("button.tuyi-plain", { type: "button", onclick: () => files.choose("image/*", true, (found) => insert(found)) }, word("classify.insert")),
            make("button.tuyi-quiet", { type: "button", onclick: () => { write([]); editor.focus(); } }, word("classify.clear")),
            make("span.tuyi-space"), stop, go)),
        problem),
      result,
      make("section.tuyi-tries", {}, make("p.tuyi-try", {}, word("classify.examples")), tries));
    listen();
    restore();
    turned();
  }

  function listen() {
    editor.addEventListener("input", changed);
    editor.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        run();
      } else if (event.key === "Enter" && !event.isComposing) {
        event.preventDefault();
        document.execCommand("insertLineBreak");
      }
    });
    editor.addEventListener("paste", (event) => {
      event.preventDefault();
      const found = files.of(event.clipboardData);
      const text = event.clipboardData.getData("text/plain");
      if (text) document.execCommand("insertText", false, text);
      else if (found.length) insert(found, chips().every((one) => one.picture) ? remember() : null);
    });
    editor.addEventListener("dragover", (event) => {
      event.preventDefault();
      editor.classList.add("over");
    });
    for (const name of ["dragleave", "drop", "dragend"]) editor.addEventListener(name, () => editor.classList.remove("over"));
    editor.addEventListener("drop", (event) => {
      const found = files.of(event.dataTransfer);
      const slot = event.target.closest?.(".tuyi-chip.empty");
      if (!found.length && !dragged) return; // text: the browser's own way
      event.preventDefault();
      const range = place(event);
      if (dragged) {
        const moved = dragged;
        if (range) range.insertNode(moved), changed();
      } else if (slot) fill(slot, found);
      else insert(found, range);
    });
  }

  // --- over a reload ---

  function keep() {
    const parts = content().map((one) => ("text" in one ? one.text : one.picture));
    sessionStorage.setItem(KEPT, JSON.stringify({ parts, task: task?.value }));
  }

  function restore() {
    const kept = sessionStorage.getItem(KEPT);
    if (!kept) return;
    sessionStorage.removeItem(KEPT);
    const { parts, task: name } = JSON.parse(kept);
    if (facts.tasks.some((one) => one.name === name)) task.value = name;
    write(parts);
  }

  return { start, told, lost, keep };
})();
