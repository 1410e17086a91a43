// Files that people choose, paste or drop, as data URLs; and a picture at its full size.
tuyi.files = (() => {
  const { make, word } = tuyi;

  const kind = (file) => (file.type.startsWith("image/") ? "image" : file.type.startsWith("video/") ? "video" : null);

  // {name, kind, url (data URL, of the file as it is)}
  function read(file) {
    return new Promise((done, fail) => {
      const reader = new FileReader();
      reader.onload = () => done({ name: file.name, kind: kind(file), url: reader.result });
      reader.onerror = () => fail(reader.error);
      reader.readAsDataURL(file);
    });
  }

  // Those files that are of the kinds, read; `complain` is told of the others
  async function take(files, kinds, complain) {
    const found = [];
    for (const file of files) {
      if (!kinds.includes(kind(file)))
        complain(word(kinds.includes("video") ? "frame.no_medium" : "frame.no_picture", { name: file.name }));
      else
        try {
          found.push(await read(file));
        } catch {
          complain(word("frame.unreadable", { name: file.name }));
        }
    }
    return found;
  }

  const of = (transfer) => [...(transfer?.files || [])];

  function choose(accept, isMany, then) {
    const input = make("input", { type: "file", accept, multiple: isMany, hidden: true });
    input.addEventListener("change", () => {
      then([...input.files]);
      input.remove();
    });
    document.body.append(input);
    input.click();
  }

  function enlarge(url, name) {
    const shown = make("dialog.tuyi-large", { "aria-label": name, onclick: () => shown.close() });
    shown.append(make("img", { src: url, alt: name }), make("button.tuyi-quiet", { type: "button" }, word("frame.close")));
    shown.addEventListener("close", () => shown.remove());
    document.body.append(shown);
    shown.showModal();
  }

  // A plain picture for the examples, so that they need no files
  function drawn(seed, lines) {
    const canvas = make("canvas", { width: 320, height: 200 });
    const pen = canvas.getContext("2d");
    const hue = (seed * 67 + 205) % 360;
    pen.fillStyle = `hsl(${hue} 30% 92%)`;
    pen.fillRect(0, 0, 320, 200);
    pen.fillStyle = `hsl(${hue} 35% 45%)`;
    pen.fillRect(0, 0, 320, 70);
    pen.fillStyle = "#fff";
    pen.font = "600 34px system-ui, sans-serif";
    pen.fillText(lines[0], 96, 48);
    pen.fillStyle = "#333";
    pen.font = "32px system-ui, sans-serif";
    lines.slice(1).forEach((line, at) => pen.fillText(line, 20, 118 + 48 * at));
    return { name: `${lines[0]}.png`, kind: "image", url: canvas.toDataURL("image/png") };
  }

  return { take, of, choose, enlarge, drawn };
})();
