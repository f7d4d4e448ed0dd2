// Shows the questions on which two chosen systems differ, side by side. Texts are inserted as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const left = document.getElementById("left"), right = document.getElementById("right");
  if (!left || !data.questions.length) return;
  const list = document.getElementById("list"), detail = document.getElementById("detail");

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const chain = (found, number) => {
    const card = element("article", undefined, found.outcome === "right" ? "is-right" : "is-wrong");
    card.append(element("b", `Chain ${number + 1}: ${found.outcome}${found.answer === null ? "" : `, ${found.answer}`}`));
    for (const role of data.roles) {
      if (found[role] === null) continue;
      const grade = role === data.roles[0] ? ` (${found.generator_outcome})` : "";
      card.append(element("p", role + grade, "role"), element("div", found[role], "text"));
    }
    return card;
  };
  const side = (question, system) => {
    const column = element("div");
    column.append(element("h4", `${system}: ${Math.round(100 * question.share[system])} % right`));
    column.append(...question.chains[system].map(chain));
    return column;
  };
  const show = (question, button) => {
    for (const other of list.querySelectorAll("button")) other.removeAttribute("aria-current");
    button.setAttribute("aria-current", "true");
    const asked = element("p", question.question, "asked");
    detail.replaceChildren(asked, element("p", `Reference: ${question.truth}`, "asked note"));
    detail.append(side(question, left.value), side(question, right.value));
  };
  const draw = () => {
    const gap = (question) => question.share[left.value] - question.share[right.value];
    const parted = data.questions.filter((question) => gap(question)).sort((a, b) => gap(b) - gap(a));
    const ahead = parted.filter((question) => gap(question) > 0).length;
    document.getElementById("counts").textContent =
      `Questions more often right: ${left.value} ${ahead}, ${right.value} ${parted.length - ahead}.`;
    list.replaceChildren(...parted.map((question) => {
      const item = element("li"), button = element("button");
      button.type = "button";
      const points = Math.round(100 * gap(question));
      button.append(element("span", `${points > 0 ? "+" : "\u2212"}${Math.abs(points)} points`, points > 0 ? "right" : "wrong"));
      button.append(element("span", question.question));
      button.addEventListener("click", () => show(question, button));
      item.append(button);
      return item;
    }));
    detail.replaceChildren();
    const first = list.querySelector("button");
    if (first) first.click();
  };
  for (const select of [left, right]) {
    select.append(...data.systems.map((name) => new Option(name, name)));
    select.addEventListener("change", draw);
  }
  const others = data.systems.filter((name) => name !== data.baseline);
  left.value = others[others.length - 1] ?? data.baseline;
  right.value = data.baseline;
  draw();
})();
