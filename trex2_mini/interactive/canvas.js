/* The browser's half of PromptCanvas (canvas.py): draw, select, move and resize prompts, review detections. No build step, no network.

Everything lies in one SVG whose user space is the image's pixels; zoom and pan are its viewBox. State lives in the synced traits of the
Python side; only tool, sign, selection, view and the undo stacks belong to the view.

Hooks for tests and for CSS (kept stable):
  .trex-canvas                              the whole widget; every control has an aria-label too
  .trex-tool-draw .trex-tool-select .trex-tool-pan   buttons, aria-pressed
  .trex-sign                                button "negative prompts", aria-pressed
  .trex-undo .trex-redo .trex-delete .trex-accept .trex-reject .trex-zoom-in .trex-zoom-out .trex-fit   buttons
  .trex-category[data-name]                 buttons, aria-pressed; .trex-new-category (input) .trex-add-category (button)
  svg.trex-stage                            role=application, focusable; draw here: a drag is a box, a click is a point
  g.trex-prompt[data-id][data-kind][data-category][data-negative]   one for each prompt, .trex-selected if selected
  g.trex-detection[data-id][data-label][data-state]                 one for each detection
  rect.trex-handle[data-handle=nw|n|ne|e|se|s|sw|w]                 of the selection
  .trex-status                              role=status, says what happened
  .trex-prompt-list, .trex-detection-list   the same as text: li[data-id] > button.trex-item, button.trex-remove (prompts) */

const CSS = `
.trex-canvas { font: 13px/1.4 var(--jp-ui-font-family, sans-serif); color: var(--jp-ui-font-color1, #222); max-width: 100%; }
.trex-bar { display: flex; flex-wrap: wrap; gap: 4px; margin: 2px 0 4px; align-items: center; }
.trex-canvas button { min-height: 26px; padding: 1px 8px; border: 1px solid #8886; border-radius: 4px; cursor: pointer; font: inherit;
  color: inherit; background: var(--jp-layout-color2, #eee); }
.trex-canvas button[aria-pressed=true] { background: #1a5fb4; color: #fff; }
.trex-canvas button.trex-category { border-left: 12px solid var(--colour); }
.trex-canvas button[aria-disabled=true] { opacity: .45; cursor: default; }
.trex-canvas input { width: 9em; min-height: 22px; border: 1px solid #8886; border-radius: 4px; font: inherit; color: inherit; background: var(--jp-layout-color1, #fff); }
.trex-canvas :focus-visible { outline: 3px solid #f5a623; outline-offset: 1px; }
.trex-stage { display: block; width: 100%; touch-action: none; user-select: none; background: #444; cursor: crosshair; }
.trex-stage[data-tool=select] { cursor: default; } .trex-stage[data-tool=pan] { cursor: grab; }
.trex-stage rect, .trex-stage path, .trex-stage circle { vector-effect: non-scaling-stroke; }
.trex-stage text { paint-order: stroke; stroke: #000c; fill: #fff; pointer-events: none; }
.trex-shape { fill: var(--colour); fill-opacity: .18; stroke: var(--colour); stroke-width: 2.5; }
.trex-prompt[data-negative=true] .trex-shape { fill-opacity: .02; stroke-dasharray: 7 4; }
.trex-cross { stroke: var(--colour); stroke-width: 1.5; fill: none; pointer-events: none; }
.trex-mark { stroke: #fff; stroke-width: 2.5; pointer-events: none; }
.trex-prompt[data-kind=point] .trex-shape { fill-opacity: .85; stroke: #fff; stroke-dasharray: none; }
.trex-detection .trex-shape { fill-opacity: 0; stroke-width: 2; stroke-dasharray: 5 3; }
.trex-detection[data-state=accepted] .trex-shape { stroke-width: 3; stroke-dasharray: none; }
.trex-detection[data-state=rejected] { opacity: .45; } .trex-detection[data-state=rejected] .trex-shape { stroke-dasharray: 1 5; }
.trex-selected .trex-shape { stroke-width: 4; filter: drop-shadow(0 0 2px #fff); }
.trex-handle { fill: #fff; stroke: #000; stroke-width: 1; }
.trex-draft { fill: #fff3; stroke: #fff; stroke-width: 1.5; stroke-dasharray: 4 3; pointer-events: none; }
.trex-status { min-height: 1.4em; margin-top: 5px; } .trex-keys { margin: 2px 0; font-size: 12px; opacity: .85; } .trex-keys kbd { border: 1px solid #8888; padding: 0 3px; }
.trex-text { max-height: 9em; overflow: auto; } .trex-text ol { margin: 0; padding-left: 2.4em; } .trex-text ol:not(:empty)::before { content: attr(aria-label); margin-left: -2em; } .trex-text button { min-height: 22px; }
.trex-item[aria-pressed=true] { font-weight: bold; }`;

const KEYS = [["D", "draw: drag a box, click a point"], ["S", "select, move, resize"], ["H", "pan"], ["N", "positive or negative"],
  ["Shift", "the other sign, once"], ["1-9", "category"], ["Enter", "a box in the middle"], ["[ ]", "previous, next"],
  ["Arrows", "move (Shift: 10 px; Alt: resize)"], ["Del", "delete, or reject a detection"], ["A R", "accept, reject"],
  ["Ctrl+Z Y", "undo, redo"], ["+ - 0", "zoom (also Ctrl+wheel, pinch)"], ["Esc", "let go"]];
const HANDLES = { nw: [0, 0], n: [.5, 0], ne: [1, 0], e: [1, .5], se: [1, 1], s: [.5, 1], sw: [0, 1], w: [0, .5] };
const CLICK = 4; // screen pixels a pointer may tremble and still click
const OTHER = "#9a9996"; // a label that is no category

function build(namespace, tag, attributes = {}, ...children) {
  const node = namespace ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}
const html = (...given) => build(false, ...given);
const svg = (...given) => build(true, ...given);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const round = (value) => Math.round(value * 100) / 100;
const order = ([a, b, c, d]) => [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)];
const freshId = () => "p" + Math.random().toString(36).slice(2, 10);
/** What a prompt or a detection covers: four numbers of a box, two of a point. */
const placeOf = (item) => item.box ?? item.xyxy ?? item.xy;
const placed = (item, place) => ({ ...item, [item.box ? "box" : item.xyxy ? "xyxy" : "xy"]: place.map(round) });

function render({ model, el }) {
  let tool = "draw", negative = false, selected = null, drag = null, view = null;
  const past = [], future = [], pointers = new Map();
  const get = (name) => model.get(name);
  const size = () => [get("width"), get("height")];
  const colour = (name) => get("categories").find((c) => c.name === name)?.colour ?? OTHER;

  // ---- the page
  const button = (name, text, label, act) =>
    html("button", { type: "button", class: `trex-${name}`, "aria-label": label, title: label, onclick: act }, text);
  const tools = { draw: "Draw", select: "Select", pan: "Pan" };
  const toolButtons = Object.entries(tools).map(([name, text]) => button(`tool-${name}`, text, `${text} tool`, () => setTool(name)));
  const sign = button("sign", "", "Negative prompts", () => setNegative(!negative));
  const undo = button("undo", "Undo", "Undo", () => step(past, future));
  const redo = button("redo", "Redo", "Redo", () => step(future, past));
  const remove = button("delete", "Delete", "Delete the selected prompt, or reject the selected detection", () => erase());
  const accept = button("accept", "Accept", "Accept the selected detection", () => review("accepted"));
  const reject = button("reject", "Reject", "Reject the selected detection", () => review("rejected"));
  const categories = html("div", { class: "trex-bar", role: "group", "aria-label": "Category" });
  const newName = html("input", { class: "trex-new-category", "aria-label": "Name of a new category", placeholder: "new category",
    onkeydown: (event) => event.key === "Enter" && addCategory() });
  const keysId = "trex-keys-" + Math.random().toString(36).slice(2);
  const keys = html("p", { class: "trex-keys", id: keysId },
    ...KEYS.flatMap(([key, what]) => [html("kbd", {}, key), ` ${what}  `]));
  const picture = svg("image", { class: "trex-image", preserveAspectRatio: "none" });
  const layers = { detections: svg("g"), prompts: svg("g"), draft: svg("g"), handles: svg("g") };
  const stage = svg("svg", { class: "trex-stage", tabindex: 0, role: "application", "aria-describedby": keysId },
    picture, ...Object.values(layers));
  const status = html("div", { class: "trex-status", role: "status", "aria-live": "polite" });
  const promptList = html("ol", { class: "trex-prompt-list", "aria-label": "Prompts" });
  const detectionList = html("ol", { class: "trex-detection-list", "aria-label": "Detections" });
  const root = html("div", { class: "trex-canvas", role: "group", "aria-label": "Prompt canvas", "data-lm-suppress-shortcuts": "true" },
    html("style", {}, CSS),
    html("div", { class: "trex-bar", role: "toolbar", "aria-label": "Tools" }, ...toolButtons, sign, undo, redo, remove, accept, reject,
      button("zoom-in", "+", "Zoom in", () => zoom(1.5)), button("zoom-out", "−", "Zoom out", () => zoom(1 / 1.5)),
      button("fit", "Fit", "Fit the image", () => fit())),
    html("div", { class: "trex-bar" }, categories, newName, button("add-category", "Add", "Add the category", () => addCategory())),
    stage, status, keys,
    html("div", { class: "trex-text", tabindex: 0, role: "region", "aria-label": "Prompts and detections as text" }, promptList, detectionList));
  el.append(root);
  const say = (text) => { status.textContent = text; };

  // ---- state: every change goes through write, what the user did through the undo stack
  function write(name, value) {
    model.set(name, value);
    model.save_changes();
  }
  function changePrompts(next) {
    past.push(["prompts", get("prompts")]);
    future.length = 0;
    write("prompts", next);
  }
  function changeItem(item) {
    if (!item.box) return changePrompts(get("prompts").map((p) => (p.id === item.id ? item : p)));
    past.push(["detections", get("detections").find((d) => d.id === item.id)]);
    future.length = 0;
    write("detections", get("detections").map((d) => (d.id === item.id ? item : d)));
  }
  /** Undo or redo. Prompts go back as a whole; of the detections only the one that was edited, the others may be newer. */
  function step(from, to) {
    const entry = from.pop();
    if (!entry) return say("nothing left to " + (from === past ? "undo" : "redo"));
    const [name, before] = entry, now = get(name);
    if (name === "prompts") {
      to.push([name, now]);
      write(name, before);
    } else {
      const current = now.find((d) => d.id === before.id);
      if (!current) return say("that detection is gone");
      to.push([name, current]);
      write(name, now.map((d) => (d.id === before.id ? before : d)));
    }
    draw(); // the buttons of the stacks
    say(from === past ? "undone" : "redone");
  }
  const item = () => selected && (get("prompts").find((p) => p.id === selected) ?? get("detections").find((d) => d.id === selected));
  function select(id) {
    selected = id;
    draw();
    if (item()) say("selected: " + describe(item()));
  }
  function describe(thing) {
    const numbers = placeOf(thing).map(Math.round);
    const where = numbers.length === 4 ? `from ${numbers[0]}, ${numbers[1]} to ${numbers[2]}, ${numbers[3]}` : `at ${numbers[0]}, ${numbers[1]}`;
    if (thing.box) return `${thing.label}, score ${thing.score.toFixed(2)}, ${thing.state}, ${where}`;
    return `${thing.negative ? "negative" : "positive"} ${thing.kind}, ${thing.category}, ${where}`;
  }
  function add(place, opposite = false) {
    const kind = place.length === 4 ? "box" : "point";
    const prompt = { id: freshId(), category: get("active"), kind, negative: negative !== opposite, [kind === "box" ? "xyxy" : "xy"]: place.map(round) };
    selected = prompt.id;
    changePrompts([...get("prompts"), prompt]);
    say("added: " + describe(prompt));
  }
  function erase(id = selected) {
    if (get("detections").some((d) => d.id === id)) return review("rejected");
    if (!get("prompts").some((p) => p.id === id)) return say("select something first");
    if (selected === id) selected = null;
    changePrompts(get("prompts").filter((p) => p.id !== id));
    say("deleted");
  }
  function review(state) {
    const thing = item();
    if (!thing?.box) return say("select a detection first");
    changeItem({ ...thing, state });
    say(`${state}: ${describe(item())}`);
  }
  function setTool(name) { tool = name; draw(); say(`${tools[name]} tool`); }
  function setNegative(value) { negative = value; draw(); say(`new prompts are ${negative ? "negative: what is not meant" : "positive"}`); }
  function setCategory(name) {
    const thing = item();
    if (thing) changeItem(thing.box ? { ...thing, label: name, state: "accepted" } : { ...thing, category: name });
    else write("active", name);
    draw();
    say(thing ? "changed: " + describe(item()) : `category ${name}`);
  }
  function addCategory() {
    const name = newName.value.trim().replace(/\s+/g, " ").normalize("NFC");
    if (!name || get("categories").some((c) => c.name.toLowerCase() === name.toLowerCase())) return say("type a name that is not yet there");
    const hue = Math.round(get("categories").length * 137.5) % 360; // the golden angle: neighbours differ
    write("categories", [...get("categories"), { name, colour: hslToHex(hue) }]);
    write("active", name);
    newName.value = "";
  }

  // ---- geometry
  const scale = () => 1 / (stage.getScreenCTM()?.a || 1); // image pixels a screen pixel
  function at(event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(stage.getScreenCTM().inverse());
    return [point.x, point.y];
  }
  const inside = ([x, y]) => { const [w, h] = size(); return [clamp(x, 0, w), clamp(y, 0, h)]; };
  function moved(place, dx, dy) {
    const [w, h] = size(), last = place.length - 2;
    dx = clamp(dx, -place[0], w - place[last]);
    dy = clamp(dy, -place[1], h - place[last + 1]);
    return place.map((v, i) => v + (i % 2 ? dy : dx));
  }
  function resized(box, handle, [x, y]) {
    const next = [...box];
    if (handle.includes("w")) next[0] = x;
    if (handle.includes("e")) next[2] = x;
    if (handle.includes("n")) next[1] = y;
    if (handle.includes("s")) next[3] = y;
    return order(next);
  }
  const hasSize = (box) => box.length === 2 || (box[2] - box[0] >= 1 && box[3] - box[1] >= 1);
  function commit(thing, place) {
    if (!hasSize(place)) { draw(); return say("a box needs a size of at least one pixel"); }
    changeItem(placed(thing.box ? { ...thing, state: "accepted" } : thing, place)); // a corrected detection is an accepted one
    say("changed: " + describe(item()));
  }
  function fit() { const [w, h] = size(); view = [0, 0, w, h]; draw(); }
  function zoom(factor, centre = null) {
    const [w, h] = size();
    const [cx, cy] = centre ?? [view[0] + view[2] / 2, view[1] + view[3] / 2];
    const width = clamp(view[2] / factor, w / 40, w), f = view[2] / width;
    look(cx - (cx - view[0]) / f, cy - (cy - view[1]) / f, width);
  }
  function look(x, y, width) {
    const [w, h] = size(), height = (width * h) / w;
    view = [clamp(x, 0, w - width), clamp(y, 0, h - height), width, height];
    drawStage();
  }

  // ---- pointers: mouse, pen, fingers
  stage.addEventListener("pointerdown", (event) => {
    if (event.button > 1) return;
    event.preventDefault();
    stage.focus();
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    const start = { from: at(event), screen: [event.clientX, event.clientY], view: [...view] };
    const handle = event.target.dataset.handle, hit = event.target.closest("[data-id]");
    if (pointers.size === 2) drag = { mode: "pinch", apart: apart(), view: [...view] };
    else if (event.button === 1 || tool === "pan") drag = { ...start, mode: "pan" };
    else if (handle) drag = { ...start, mode: "resize", handle, thing: item() };
    else if (tool === "draw") drag = { ...start, mode: "draw" };
    else {
      select(hit?.dataset.id ?? null);
      drag = { ...start, mode: hit ? "move" : "pan", thing: item() };
    }
  });
  const apart = () => { const [a, b] = [...pointers.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]) || 1; };
  stage.addEventListener("pointermove", (event) => {
    if (!drag || !pointers.has(event.pointerId)) return;
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (drag.mode === "pinch") return pointers.size === 2 && zoom((apart() / drag.apart) * (view[2] / drag.view[2]));
    const dx = event.clientX - drag.screen[0], dy = event.clientY - drag.screen[1];
    if (Math.hypot(dx, dy) >= CLICK) drag.far = true;
    if (!drag.far) return;
    if (drag.mode === "pan") return look(drag.view[0] - dx * scale(), drag.view[1] - dy * scale(), drag.view[2]);
    const [x, y] = at(event);
    if (drag.mode === "draw") drag.place = order([...inside(drag.from), ...inside([x, y])]);
    if (drag.mode === "move") drag.place = moved(placeOf(drag.thing), x - drag.from[0], y - drag.from[1]);
    if (drag.mode === "resize") drag.place = resized(placeOf(drag.thing), drag.handle, inside([x, y]));
    drawDraft(drag.place);
  });
  stage.addEventListener("pointerup", (event) => {
    pointers.delete(event.pointerId);
    const done = drag;
    if (!done) return;
    if (done.mode !== "pinch" || !pointers.size) drag = null;
    drawDraft(null);
    if (done.mode === "draw") {
      if (!done.far) {
        const [x, y] = done.from, [w, h] = size();
        if (x >= 0 && y >= 0 && x <= w && y <= h) add([x, y], event.shiftKey);
      } else if (hasSize(done.place)) add(done.place, event.shiftKey);
      else say("a box needs a size of at least one pixel");
    } else if (done.place) commit(done.thing, done.place);
  });
  stage.addEventListener("pointercancel", (event) => { pointers.delete(event.pointerId); drag = null; drawDraft(null); });
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, at(event));
  }, { passive: false });

  // ---- keys
  root.addEventListener("keydown", (event) => {
    event.stopPropagation(); // not for the notebook
    if (event.target === newName) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const control = event.ctrlKey || event.metaKey, onStage = event.target === stage;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    const things = [...get("prompts"), ...get("detections")];
    const acts = {
      d: () => setTool("draw"), s: () => setTool("select"), h: () => setTool("pan"), n: () => setNegative(!negative),
      Delete: () => erase(), Backspace: () => erase(), a: () => review("accepted"), r: () => review("rejected"),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => fit(),
      Escape: () => { drag = null; drawDraft(null); select(null); say(""); },
      "[": () => next(-1), "]": () => next(1),
    };
    const next = (by) => {
      if (!things.length) return say("nothing to select");
      const index = things.findIndex((t) => t.id === selected);
      select(things[(index < 0 ? (by > 0 ? 0 : things.length - 1) : index + by + things.length) % things.length].id);
    };
    let act = null;
    if (control) act = key === "z" ? () => (event.shiftKey ? step(future, past) : step(past, future)) : key === "y" ? () => step(future, past) : null;
    else if (arrow && onStage) act = () => nudge(arrow, event.shiftKey ? 10 : 1, event.altKey);
    else if (key === "Enter" && onStage) act = () => add([view[0] + view[2] * 0.4, view[1] + view[3] * 0.4, view[0] + view[2] * 0.6, view[1] + view[3] * 0.6], event.shiftKey);
    else if (/^[1-9]$/.test(key)) act = () => get("categories")[key - 1] && setCategory(get("categories")[key - 1].name);
    else act = acts[key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  function nudge([dx, dy], by, resize) {
    const thing = item();
    if (!thing) return look(view[0] + dx * view[2] * 0.1, view[1] + dy * view[3] * 0.1, view[2]);
    const place = placeOf(thing), box = place.length === 4;
    commit(thing, resize && box ? resized(place, "se", inside([place[2] + dx * by, place[3] + dy * by])) : moved(place, dx * by, dy * by));
  }

  // ---- pictures
  function boxPath(tag, [x1, y1, x2, y2], attributes) {
    return svg(tag, { x: x1, y: y1, width: x2 - x1, height: y2 - y1, ...attributes });
  }
  function drawDraft(place) {
    if (!place) return layers.draft.replaceChildren();
    const shape = place.length === 4 ? boxPath("rect", place, { class: "trex-draft" })
      : svg("circle", { class: "trex-draft", cx: place[0], cy: place[1], r: 8 * scale() });
    layers.draft.replaceChildren(shape);
  }
  function promptShape(prompt) {
    const place = placeOf(prompt), unit = scale();
    const group = svg("g", { class: "trex-prompt" + (prompt.id === selected ? " trex-selected" : ""), "data-id": prompt.id, "data-kind": prompt.kind,
      "data-category": prompt.category, "data-negative": prompt.negative, role: "img", "aria-label": describe(prompt),
      style: `--colour: ${colour(prompt.category)}` });
    if (prompt.kind === "box") {
      const [x1, y1, x2, y2] = place;
      group.append(boxPath("rect", place, { class: "trex-shape" }));
      if (prompt.negative) group.append(svg("path", { class: "trex-cross", d: `M${x1} ${y1}L${x2} ${y2}M${x1} ${y2}L${x2} ${y1}` }));
    } else {
      const [x, y] = place, r = 4 * unit;
      group.append(svg("circle", { class: "trex-shape", cx: x, cy: y, r: 8 * unit }),
        svg("path", { class: "trex-mark", d: `M${x - r} ${y}h${2 * r}` + (prompt.negative ? "" : `M${x} ${y - r}v${2 * r}`) }));
    }
    return group;
  }
  function detectionShape(detection) {
    const unit = scale(), [x1, y1] = detection.box;
    const label = svg("text", { x: x1 + 2 * unit, y: y1 + 12 * unit, "font-size": 11 * unit, "stroke-width": 2.5 * unit },
      `${detection.state === "accepted" ? "✓ " : detection.state === "rejected" ? "✗ " : ""}${detection.label} ${detection.score.toFixed(2)}`);
    return svg("g", { class: "trex-detection" + (detection.id === selected ? " trex-selected" : ""), "data-id": detection.id, "data-label": detection.label,
      "data-state": detection.state, role: "img", "aria-label": describe(detection), style: `--colour: ${colour(detection.label)}` },
      boxPath("rect", detection.box, { class: "trex-shape" }), label);
  }
  const area = (thing) => { const p = placeOf(thing); return p.length === 4 ? (p[2] - p[0]) * (p[3] - p[1]) : 0; };
  const bySize = (things) => [...things].sort((a, b) => area(b) - area(a)); // the small ones on top, where they can be clicked
  function listed(thing, removable) {
    const text = html("button", { type: "button", class: "trex-item", "aria-pressed": thing.id === selected, onclick: () => select(thing.id) }, describe(thing));
    const away = button("remove", "×", "Delete " + describe(thing), () => erase(thing.id));
    return html("li", { "data-id": thing.id }, text, ...(removable ? [" ", away] : []));
  }
  /** New children, with the focus where it was. */
  function refill(parent, nodes) {
    const focused = parent.contains(document.activeElement) && document.activeElement;
    const index = focused ? [...parent.children].findIndex((child) => child.contains(focused)) : -1;
    parent.replaceChildren(...nodes);
    if (index < 0) return;
    const child = parent.children[Math.min(index, parent.children.length - 1)];
    (child?.matches("button") ? child : child?.querySelector(`.${focused.classList[0]}`) ?? stage).focus();
  }
  function drawStage() {
    const [w, h] = size(), prompts = get("prompts"), detections = get("detections"), thing = item();
    stage.setAttribute("viewBox", view.join(" "));
    stage.dataset.tool = tool;
    stage.style.aspectRatio = `${w} / ${h}`;
    stage.style.maxWidth = `min(${Math.max(w, 640)}px, ${(62 * w) / h}vh)`;
    stage.setAttribute("aria-label", `Image of ${w} by ${h} pixels, ${prompts.length} prompts, ${detections.length} detections`);
    layers.detections.replaceChildren(...bySize(detections).map(detectionShape));
    layers.prompts.replaceChildren(...bySize(prompts).map(promptShape));
    const box = thing && placeOf(thing), unit = scale() * 9;
    layers.handles.replaceChildren(...(box?.length === 4 ? Object.entries(HANDLES) : []).map(([name, [fx, fy]]) =>
      svg("rect", { class: "trex-handle", "data-handle": name, width: unit, height: unit, style: `cursor: ${name}-resize`,
        x: box[0] + fx * (box[2] - box[0]) - unit / 2, y: box[1] + fy * (box[3] - box[1]) - unit / 2 })));
  }
  function draw() {
    drawStage();
    const thing = item();
    toolButtons.forEach((b, i) => b.setAttribute("aria-pressed", Object.keys(tools)[i] === tool));
    sign.textContent = negative ? "− negative" : "+ positive";
    sign.setAttribute("aria-pressed", negative);
    const idle = [[undo, !past.length], [redo, !future.length], [remove, !thing], [accept, !thing?.box], [reject, !thing?.box]];
    for (const [b, off] of idle) b.setAttribute("aria-disabled", off); // "disabled" would throw the focus out of the widget
    refill(categories, get("categories").map((c, i) => html("button", { type: "button", class: "trex-category", "data-name": c.name,
      "aria-label": `Category ${c.name}`, "aria-pressed": c.name === get("active"), style: `--colour: ${c.colour}`, onclick: () => setCategory(c.name) },
      i < 9 ? `${i + 1} ${c.name}` : c.name)));
    refill(promptList, get("prompts").map((p) => listed(p, true)));
    refill(detectionList, get("detections").map((d) => listed(d, false)));
  }
  function drawImage() {
    const [w, h] = size();
    for (const [key, value] of Object.entries({ href: get("image_src"), width: w, height: h })) picture.setAttribute(key, value);
    [selected, drag, past.length, future.length] = [null, null, 0, 0]; // another picture, another story
    fit();
  }

  const listeners = [["change:image_src", drawImage], ["change:prompts change:detections change:categories change:active", draw]];
  for (const [names, act] of listeners) model.on(names, act);
  const resizing = new ResizeObserver(draw); // labels, handles and points keep their size on the screen
  resizing.observe(stage);
  drawImage();
  return () => {
    resizing.disconnect();
    for (const [names, act] of listeners) model.off(names, act);
  };
}

function hslToHex(hue) {
  const part = (n) => {
    const k = (n + hue / 30) % 12, value = 0.45 - 0.36 * Math.max(-1, Math.min(k - 3, 9 - k, 1));
    return Math.round(255 * value).toString(16).padStart(2, "0");
  };
  return `#${part(0)}${part(8)}${part(4)}`;
}

export default { render };
