// What all parts of the page share. The only global is `tuyi`.
window.tuyi = (() => {
  const facts = window.tuyiFacts;
  const words = window.tuyiWords;

  const cookie = (name) => document.cookie.split("; ").find((one) => one.startsWith(name + "="))?.split("=")[1];
  const asked = new URLSearchParams(location.search).get("lang") || cookie("tuyi_language") || navigator.language || "";
  const language = asked.toLowerCase().startsWith("zh") ? "zh" : "en";
  const tag = language === "zh" ? "zh-CN" : "en";
  document.cookie = `tuyi_language=${language}; path=/; max-age=31536000; samesite=strict`;
  document.documentElement.lang = tag;
  // Gradio takes its language from here
  Object.defineProperty(navigator, "language", { get: () => tag });
  Object.defineProperty(navigator, "languages", { get: () => [tag] });

  function word(key, values = {}) {
    const texts = words[key];
    if (!texts) return key;
    return texts[language === "zh" ? 1 : 0].replace(/\{(\w+)\}/g, (all, name) => (name in values ? values[name] : all));
  }

  // an element: make("button.plain", {type: "button", onclick: …}, "text", child, …)
  function make(kind, settings = {}, ...children) {
    const [name, ...classes] = kind.split(".");
    const made = document.createElement(name);
    made.classList.add(...classes);
    for (const [key, value] of Object.entries(settings)) {
      if (value === undefined || value === null || value === false) continue;
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (key in made && !key.includes("-")) made[key] = value;
      else made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.filter((one) => one !== null && one !== undefined && one !== false));
    return made;
  }

  function number(value) {
    return new Intl.NumberFormat(tag).format(value);
  }

  const megabytes = () => Math.floor(facts.limits.body / 2 ** 20) || (facts.limits.body / 2 ** 20).toFixed(2);

  // What is said of a refusal: {status, message, param, code}
  function refused(refusal, isTalk) {
    const most = refusal.code === "too_many_videos" ? facts.limits.videos : facts.limits.pictures;
    const values = { most: number(most), place: refusal.place || word("refusal.place"), ...refusal.values };
    const keys = {
      too_large: isTalk ? "refusal.too_large_talk" : "refusal.too_large",
      too_many_images: "refusal.too_many_images",
      too_many_videos: "refusal.too_many_videos",
      image_too_large: "refusal.image_too_large",
      invalid_image: "refusal.invalid_image",
      invalid_base64: "refusal.invalid_image",
      invalid_image_url: "refusal.invalid_image",
      unusable_content: refusal.place ? "refusal.broken" : "refusal.unusable_content",
      invalid_video_url: "refusal.broken",
      context_length_exceeded: "refusal.too_long",
      deadline: "refusal.late",
      lost: "refusal.lost",
      said: null,
    };
    if (refusal.code === "too_large") values.most = megabytes();
    const key = refusal.code in keys ? keys[refusal.code] : refusal.status === 429 || refusal.status === 503 ? "refusal.busy" : "refusal.other";
    const shown = make("div.tuyi-refusal", { role: "alert" }, make("p", {}, key ? word(key, values) : refusal.message));
    if (key && refusal.message)
      shown.append(make("details", {}, make("summary", {}, word("refusal.details")), make("p", {}, refusal.message)));
    return shown;
  }

  // --- what is asked, until it is answered or the server cannot be reached ---

  let asking = null; // the part of the page that asked last

  // Ask; `part` has lost(refusal). Call news() with each answer and end() with the last.
  function ask(part, trigger, question) {
    let last = Date.now();
    let misses = 0;
    asking = part;
    const timer = setInterval(async () => {
      if (Date.now() - last > 1000 * facts.limits.seconds + 15000) return part.lost();
      try {
        await fetch("/healthz", { signal: AbortSignal.timeout(4000) });
        misses = 0;
      } catch {
        misses += 1;
        if (misses > 1) part.lost();
      }
    }, 4000);
    trigger("submit", question);
    return { news: () => (last = Date.now()), end: () => clearInterval(timer) };
  }

  // Gradio tells of these in passing only
  const plain = window.fetch.bind(window);
  let isLost = false; // Gradio then loads the page anew once there is a server again
  addEventListener("beforeunload", () => isLost && keep());
  window.fetch = async (resource, options) => {
    const isAsked = new URL(resource?.url || resource, location.href).pathname.startsWith("/gradio_api/queue/");
    if (!isAsked) return plain(resource, options);
    let answer;
    try {
      answer = await plain(resource, options);
    } catch (error) {
      if (error.name !== "AbortError") {
        isLost = true;
        asking?.lost();
      }
      throw error;
    }
    isLost = false;
    if (!answer.ok) {
      const told = await answer.clone().json().catch(() => null);
      if (answer.status === 401) location.assign("/login");
      else asking?.lost(told?.error ? { status: answer.status, ...told.error } : undefined);
    }
    return answer;
  };

  function keep() {
    // texts and pictures outlive the reload that another language takes
    try {
      for (const part of [api.classify, api.chat]) part?.keep?.();
      return true;
    } catch {
      return false;
    }
  }

  function head(element) {
    const other = language === "zh" ? "en" : "zh";
    const change = make("button.tuyi-quiet", { type: "button", lang: other, onclick: () => {
      if (!keep() && !confirm(word("frame.lose"))) return;
      const to = new URL(location.href);
      to.searchParams.set("lang", other);
      location.replace(to);
    } }, word("frame.language"));
    const shown = element.querySelector(".tuyi-head");
    shown.append(make("strong.tuyi-name", {}, facts.model), make("span.tuyi-space"), change);
    if (facts.login)
      shown.append(make("form", { method: "post", action: "/logout" }, make("button.tuyi-quiet", { type: "submit" }, word("frame.leave"))));
  }

  // <span data-word="key"> is filled wherever it appears
  new MutationObserver((changes) => {
    for (const change of changes)
      for (const node of change.addedNodes) {
        if (node.nodeType !== 1) continue;
        for (const one of [node, ...node.querySelectorAll("[data-word]")])
          if (one.dataset?.word && !one.dataset.filled) {
            one.dataset.filled = "1";
            one.textContent = word(one.dataset.word);
          }
      }
  }).observe(document, { childList: true, subtree: true });

  const api = { facts, language, tag, word, make, number, refused, ask, head };
  return api;
})();
