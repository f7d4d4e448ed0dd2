// The tree viewer. Whatever models wrote reaches the page as `textContent`, and never as markup.
"use strict";
(() => {
  const LABELS = { true: ["right", "✓", "positive"], false: ["wrong", "✗", "negative"], undefined: ["unknown", "?", "no label"] };
  const WORDS = { right: "correct", wrong: "incorrect", "all right": "all positive", "all wrong": "all negative" };
  const wordOf = (name) => WORDS[name] ?? name;
  const KINDS = ["mixed", "all right", "all wrong", "failed", "unknown"];

  const data = JSON.parse(document.getElementById("data").textContent);
  const ROLES = data.texts.map((text) => text[0].toUpperCase() + text.slice(1)).map((text) => [text, `${text}s`]);
  const [viewer, filters, search, found, list, article] = ["viewer", "filters", "search", "found", "questions", "tree"]
    .map((id) => document.getElementById(id));
  const byId = new Map(data.trees.map((tree) => [tree.id, tree]));
  const state = { kind: null, words: "", shown: [], tree: null, path: "" };

  function make(tag, { text, ...properties } = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    element.append(...children.filter(Boolean));
    return element;
  }

  function button(properties, press, ...children) {
    const made = make("button", { type: "button", ...properties }, ...children);
    made.addEventListener("click", press);
    return made;
  }

  const labelOf = (node) => LABELS[node.label];
  const parentOf = (address) => address.slice(0, Math.max(0, address.lastIndexOf(".")));
  const childrenOf = (tree, address) => tree.nodes.filter((node) => parentOf(node.node) === address);
  const worthOf = (node) => (node.value === undefined ? "no value" : node.value.toFixed(2));
  const isOn = (path, address) => path === address || path.startsWith(`${address}.`);

  // The list of questions.

  function searchable(tree) {
    tree.words ??= [tree.id, tree.question, tree.truth, ...tree.choices, ...tree.nodes.map((node) => node.text),
      ...tree.failures.map((failure) => failure.reason)].join("\n").toLowerCase();
    return tree.words;
  }

  function matches(tree) {
    return (state.kind === null || tree.kind === state.kind) && searchable(tree).includes(state.words);
  }

  function drawFilters() {
    const number = (kind) => data.trees.filter((tree) => tree.kind === kind).length;
    const chip = (kind, name, count) => button(
      { text: `${name} ${count}`, "aria-pressed": String(state.kind === kind), "data-kind": kind ?? "all" },
      () => { state.kind = kind; drawFilters(); drawList(); filters.querySelector("[aria-pressed=true]").focus(); },
    );
    const kinds = KINDS.filter((kind) => kind !== "unknown" || number(kind));
    filters.replaceChildren(chip(null, "all", data.trees.length), ...kinds.map((kind) => chip(kind, wordOf(kind), number(kind))));
  }

  function listed(tree) {
    const leaves = tree.nodes.filter((node) => node.depth === ROLES.length - 1);
    const strip = make("span", { class: "strip", "aria-hidden": "true" },
      ...leaves.map((leaf) => make("i", { class: `is-${labelOf(leaf)[0]}` })));
    const link = make("a", { href: address(tree.id) },
      make("span", { class: "asked", text: tree.question, dir: "auto" }),
      make("span", { class: "id", text: wordOf(tree.kind) }), leaves.length ? strip : null);
    if (tree === state.tree) link.setAttribute("aria-current", "true");
    return make("li", {}, link);
  }

  function drawList() {
    state.shown = data.trees.filter(matches);
    found.textContent = `${state.shown.length} of ${data.trees.length} shown`
      + (data.trees.length < data.asked ? `, a sample of ${data.asked.toLocaleString("en")}` : "");
    list.replaceChildren(...state.shown.map(listed));
    showCurrent();
  }

  function showCurrent() {
    const current = list.querySelector("[aria-current]");
    if (current) list.scrollTop += current.getBoundingClientRect().top - list.getBoundingClientRect().top - list.clientHeight / 3;
  }

  function mark(tree) {
    list.querySelector("[aria-current]")?.removeAttribute("aria-current");
    list.children[state.shown.indexOf(tree)]?.firstChild.setAttribute("aria-current", "true");
    showCurrent();
  }

  // One tree.

  function fact(name, text) {
    return make("div", {}, make("dt", { text: name }), make("dd", { text, dir: "auto" }));
  }

  function mover(step, text, name) {
    const press = () => { move(step); article.querySelector(`[data-step="${step}"]`).focus(); };
    return button({ text, "aria-label": name, "data-step": step }, press);
  }

  function facts(tree) {
    const moves = make("div", { class: "moves" }, mover(-1, "←", "Previous question"), mover(1, "→", "Next question"));
    const choices = tree.choices.map((choice, place) => `${String.fromCharCode(65 + place)}. ${choice}`).join("   ");
    const told = make("dl", {}, fact("reference", tree.truth), choices && fact("choices", choices),
      fact("id", tree.id), fact("leaves", wordOf(tree.kind)), fact("split", tree.split),
      tree.excluded && fact("gives no rows", tree.excluded));
    return make("div", { class: "facts" }, told, moves);
  }

  function branch(tree, node) {
    const [label, glyph, word] = labelOf(node);
    const below = childrenOf(tree, node.node);
    const classes = [`is-${label}`, node.depth === ROLES.length - 1 && "leaf", isOn(state.path, node.node) && "on-path"];
    const cell = button({
      text: node.depth === 0 ? `${glyph} ${worthOf(node)}` : glyph,
      class: classes.filter(Boolean).join(" "), "aria-current": String(state.path === node.node), "data-node": node.node,
      title: `${ROLES[node.depth][0]} ${node.node}: ${word}, ${worthOf(node)}`,
      "aria-label": `${ROLES[node.depth][0]} ${node.node}: ${word}, ${worthOf(node)}`,
    }, () => choose(node.node, ".map"));
    return make("div", { class: "branch" }, cell,
      below.length ? make("div", { class: "below" }, ...below.map((child) => branch(tree, child))) : null);
  }

  function gradeOf(node) {
    const read = (answer) => (answer ? `, read “${answer}”` : "");
    const why = node.why ?? [];
    const mean = node.depth < ROLES.length - 1 && node.value !== undefined && `mean of ${node.leaves} ${node.leaves === 1 ? "leaf" : "leaves"}`;
    const own = node.own_outcome && node.outcome === undefined && `own answer ${wordOf(node.own_outcome)}${read(node.own_answer)}`;
    const by = node.grader && node.grader !== "none" ? ` by ${node.grader}` : "";
    const named = why[0]?.startsWith(`${node.grader}: `);
    const grade = node.outcome && (named ? `${wordOf(node.outcome)} by ${why[0]}` : `${wordOf(node.outcome)}${by}${read(node.answer)}`);
    return [mean, own, grade, ...(named ? why.slice(1) : why), node.error].filter(Boolean).join("\n");
  }

  function card(node) {
    const [label, glyph, word] = labelOf(node);
    const status = node.status === "ok" ? "" : ` · ${node.status}`;
    const head = button({ "data-node": node.node, "aria-pressed": String(isOn(state.path, node.node)) }, () => choose(node.node, ".columns"),
      make("span", { class: "label", text: `${glyph} ${word}${status}` }),
      make("span", { class: "worth", text: `${worthOf(node)} · ${node.node}` }));
    const reasoning = node.reasoning && make("details", { class: "reasoning" },
      make("summary", { text: "hidden reasoning" }), make("div", { class: "text", text: node.reasoning, dir: "auto" }));
    const grade = gradeOf(node);
    return make("div", { class: `card is-${label}${isOn(state.path, node.node) ? " on-path" : ""}` }, head, reasoning,
      make("div", { class: "text", text: node.text, dir: "auto", tabindex: "0" }),
      grade && make("div", { class: "grade", text: grade, dir: "auto" }));
  }

  function column(tree, depth) {
    const steps = state.path.split(".");
    const parent = steps.slice(0, depth).join(".");
    const nodes = childrenOf(tree, parent);
    const title = depth === 0 ? ROLES[0][1] : `${ROLES[depth][1]} of ${ROLES[depth - 1][0].toLowerCase()} ${parent}`;
    return make("section", { "aria-label": title }, make("h4", { text: title }), ...nodes.map(card));
  }

  function failures(tree) {
    const items = tree.failures.map((failure) => make("li", { dir: "auto",
      text: `${failure.role}${failure.node ? ` below ${failure.node}` : ""}: ${failure.reason}` }));
    const more = tree.failed - tree.failures.length;
    return make("div", {}, make("p", { class: "empty", text: "No complete tree: these branches failed." }),
      make("ul", { class: "failures" }, ...items, more ? make("li", { text: `… and ${more} more` }) : null));
  }

  function whole(tree) {
    const hidden = tree.hidden && make("p", { class: "caption", text: `${tree.hidden.toLocaleString("en")} more nodes of this tree are not in the page.` });
    return [make("div", { class: "map", role: "group", "aria-label": "The tree at a glance" },
      ...childrenOf(tree, "").map((node) => branch(tree, node))), hidden,
    make("div", { class: "columns" }, ...ROLES.map((_, depth) => column(tree, depth)))];
  }

  function drawTree() {
    const tree = state.tree;
    if (!tree) return;
    article.replaceChildren(...[make("h3", { text: tree.question, dir: "auto" }), facts(tree),
      ...(tree.nodes.length ? whole(tree) : [failures(tree)])].filter(Boolean));
  }

  function firstLeaf(tree, address) {
    const child = childrenOf(tree, address)[0];
    return child ? firstLeaf(tree, child.node) : address;
  }

  function choose(node, where) {
    state.path = firstLeaf(state.tree, node);
    history.replaceState(null, "", address(state.tree.id, node));
    drawTree();
    article.querySelector(`${where} [data-node="${node}"]`).focus();
  }

  // Where the page is.

  function address(id, node) {
    return `#q=${encodeURIComponent(id)}${node ? `&n=${node}` : ""}`;
  }

  function missing(id) {
    state.tree = null;
    const told = id === null ? "There is no question to show." : `Question “${id}” is not in this page; try: malt show ${data.version} ${id}`;
    article.replaceChildren(make("p", { class: "empty", text: told }));
  }

  function open(id, node) {
    const tree = byId.get(id);
    if (!tree) return missing(id);
    const start = tree.nodes.some((each) => each.node === node) ? node : "";
    state.tree = tree;
    state.path = firstLeaf(tree, start);
    if (!matches(tree)) {
      [state.kind, state.words, search.value] = [null, "", ""];
      drawFilters();
      drawList();
    }
    mark(tree);
    drawTree();
  }

  function follow() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (asked.has("q")) open(asked.get("q"), asked.get("n"));
  }

  function move(step) {
    const place = state.shown.indexOf(state.tree);
    const next = state.shown[place < 0 ? 0 : place + step];
    if (next) {
      history.replaceState(null, "", address(next.id));
      open(next.id);
    }
  }

  const inField = (target) => target.closest?.("input, textarea, select, [contenteditable]");

  function press(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const inList = list.contains(event.target) || event.target === search;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
    const sideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
    if (step && (sideways ? !inField(event.target) : inList)) {
      event.preventDefault();
      move(step);
      if (list.contains(event.target)) list.querySelector("[aria-current]")?.focus();
    } else if (event.key === "/" && !inField(event.target)) {
      event.preventDefault();
      search.focus();
    }
  }

  search.addEventListener("input", () => { state.words = search.value.trim().toLowerCase(); drawList(); });
  addEventListener("hashchange", follow);
  addEventListener("keydown", press);
  viewer.hidden = false;
  drawFilters();
  drawList();
  follow();
  if (!state.tree && !location.hash.startsWith("#q=")) data.trees.length ? open(state.shown[0].id) : missing(null);
})();
