"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const STEP = 30;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

function drawn(boxes, kind, size) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  picture.setAttribute("viewBox", `0 0 ${size[0]} ${size[1]}`);
  for (const [left, top, right, bottom] of boxes) {
    const box = document.createElementNS(space, "rect");
    box.setAttribute("class", kind);
    box.setAttribute("x", left);
    box.setAttribute("y", top);
    box.setAttribute("width", Math.max(0, right - left));
    box.setAttribute("height", Math.max(0, bottom - top));
    picture.append(box);
  }
  return picture;
}

function picture(place, label, caption, layers = []) {
  const holder = element("span", { class: "picture" });
  if (place === null || place === undefined) {
    holder.append(element("small", {}, caption || "no image"));
    return holder;
  }
  const size = data.sizes[place];
  holder.append(element("img", { src: data.thumbs[place], alt: label, class: Math.max(...size) <= 96 ? "small" : null }));
  for (const [boxes, kind] of layers) if (boxes && boxes.length) holder.append(drawn(boxes, kind, size));
  if (caption) holder.append(element("small", {}, caption));
  return holder;
}

function verdict(answer, graded) {
  if (!graded) return ["", ""];
  if (answer.right) return ["right", "✓"];
  return answer.score > 0.5 && !answer.boxes ? ["half", "◐"] : ["wrong", "✗"];
}

function percent(value) {
  return `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;
}

function card(record, gallery) {
  const made = element("span", { class: "sample" });
  const pictures = element("span", { class: "pictures" });
  const layers = [[record.boxes, "reference"], [record.answers[0].boxes, "predicted"]];
  record.images.forEach((place) => pictures.append(picture(place, `image of ${record.id}`, "", layers)));
  for (const [place, answer] of record.answers.entries()) {
    const whose = record.answers.length > 1 ? gallery.by[place] : "";
    if (answer.mask !== null && answer.mask !== undefined) pictures.append(picture(answer.mask, "predicted mask", whose));
    if (answer.image !== null && answer.image !== undefined) pictures.append(picture(answer.image, "image found", "found"));
  }
  if (record.images.some((place) => place !== null) || pictures.children.length > 1) made.append(pictures);
  if (record.talk) made.append(element("span", { class: "talk" }, ...record.talk.flat().map((text) => element("span", {}, text))));
  if (record.question) made.append(element("span", { class: "ask" }, record.question));
  record.answers.forEach((answer, place) => {
    const [kind, mark] = verdict(answer, gallery.graded);
    const sure = answer.sure === undefined ? "" : percent(answer.sure);
    const score = gallery.graded && !answer.boxes && (answer.right || answer.score === 0) ? "" : `${answer.boxes ? "IoU " : ""}${answer.score.toFixed(1)}`;
    made.append(element("span", { class: `answer ${kind}` },
      mark ? element("span", { class: "mark", title: kind === "half" ? "partly right" : kind }, mark) : "",
      element("span", { class: "grow" }, answer.text || "(nothing)"),
      gallery.by.length > 1 ? element("span", { class: "by" }, gallery.by[place]) : "",
      element("span", { class: "sure" }, [score, sure].filter(Boolean).join(" · "))));
  });
  const rank = record.rank === undefined ? "" : `right one at rank ${record.rank}; `;
  if (record.refs && record.refs.length) made.append(element("span", { class: "refs" }, `${rank}reference: ${record.refs.join(" | ")}`));
  made.append(element("span", { class: "id" }, [record.id, ...Object.entries(record.f).filter(([name]) => name !== "reference").map(([, value]) => value)].join(" · ")));
  return made;
}

const doubt = (record, most) => (1 - Math.min(record.answers[0].score / most, 1)) * (record.answers[0].sure ?? 1);
const spread = (record) => Math.max(...record.answers.map((one) => one.score)) - Math.min(...record.answers.map((one) => one.score));

function sorts(gallery, several) {
  const score = (record) => record.answers[0].score;
  const sure = (record) => record.answers[0].sure ?? 0;
  const known = { "wrong and sure first": (one) => -doubt(one, gallery.most), "lowest score first": score, "highest score first": (one) => -score(one) };
  if (gallery.confident) Object.assign(known, { "surest first": (one) => -sure(one), "least sure first": sure });
  if (several) return { "widest apart first": (one) => -spread(one), ...known };
  return { ...known, "in the order of the data": () => 0 };
}

function outcomes(gallery) {
  const known = { all: () => true };
  if (gallery.graded) {
    known.wrong = (one) => !one.answers[0].right;
    known.right = (one) => one.answers[0].right;
  } else {
    known["lower half"] = (one) => one.answers[0].score < gallery.middle;
    known["upper half"] = (one) => one.answers[0].score >= gallery.middle;
  }
  gallery.by.forEach((name, place) => {
    if (!place) return;
    if (gallery.graded) {
      known[`${gallery.by[0]} right, ${name} wrong`] = (one) => one.answers[0].right && !one.answers[place].right;
      known[`${gallery.by[0]} wrong, ${name} right`] = (one) => !one.answers[0].right && one.answers[place].right;
    } else {
      known[`${gallery.by[0]} above ${name}`] = (one) => one.answers[0].score > one.answers[place].score;
      known[`${gallery.by[0]} below ${name}`] = (one) => one.answers[0].score < one.answers[place].score;
    }
    known[`${gallery.by[0]} and ${name} differ`] = (one) => one.answers[0].text !== one.answers[place].text;
  });
  return known;
}

const SURE = { any: () => true, "90 % or more": (sure) => sure >= 0.9, "50 to 90 %": (sure) => sure >= 0.5 && sure < 0.9, "below 50 %": (sure) => sure < 0.5 };

function open(records, gallery, place, back) {
  const dialog = element("dialog", { "aria-label": "Sample" });
  const body = element("div");
  const show = (next) => {
    place = (next + records.length) % records.length;
    body.replaceChildren(card(records[place], gallery));
  };
  const button = (text, label, action) => {
    const made = element("button", { type: "button", "aria-label": label }, text);
    made.addEventListener("click", action);
    return made;
  };
  dialog.append(element("div", { class: "bar-of-buttons" },
    button("←", "previous", () => show(place - 1)), button("→", "next", () => show(place + 1)), button("Close", "close", () => dialog.close())), body);
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(place - 1);
    if (event.key === "ArrowRight") show(place + 1);
  });
  dialog.addEventListener("close", () => { dialog.remove(); back.focus(); });
  document.body.append(dialog);
  show(place);
  dialog.showModal();
}

function start(root, gallery) {
  const form = root.querySelector("form");
  const list = root.querySelector(".samples");
  const more = root.querySelector(".more");
  const scores = gallery.records.map((one) => one.answers[0].score).sort((a, b) => a - b);
  gallery.middle = scores[Math.floor(scores.length / 2)] ?? 0;
  const orders = sorts(gallery, root.getAttribute("aria-label") === "Disagreements");
  const kinds = outcomes(gallery);
  const options = (select, names) => select.append(...names.map((name) => element("option", {}, name)));
  options(form.elements.sort, Object.keys(orders));
  options(form.elements.outcome, Object.keys(kinds));
  const values = {};
  for (const record of gallery.records) {
    for (const [name, value] of Object.entries(record.f)) (values[name] ??= new Map()).set(value, (values[name].get(value) ?? 0) + 1);
  }
  for (const [name, counts] of Object.entries(values)) {
    if (counts.size < 2 || counts.size > 80) continue;
    const select = element("select", { "data-filter": name });
    options(select, ["any", ...[...counts.keys()].sort()]);
    form.querySelector(".filters").append(element("label", {}, name === "reference" ? "answer or class" : name.replaceAll("_", " "), select));
  }
  const surely = element("select", { name: "sure" });
  options(surely, Object.keys(SURE));
  if (gallery.confident) form.querySelector(".filters").append(element("label", {}, "confidence", surely));
  let chosen = [];
  let shown = 0;
  const add = () => {
    for (const record of chosen.slice(shown, shown + STEP)) {
      const button = element("button", { type: "button", class: "sample" }, ...card(record, gallery).childNodes);
      const place = chosen.indexOf(record);
      button.addEventListener("click", () => open(chosen, gallery, place, button));
      list.append(element("li", {}, button));
    }
    shown = Math.min(chosen.length, shown + STEP);
    more.hidden = shown >= chosen.length;
    form.querySelector("output").textContent = `${shown} of ${chosen.length}`;
  };
  const update = () => {
    const wanted = form.elements.search.value.trim().toLowerCase();
    const filters = [...form.querySelectorAll("[data-filter]")].filter((one) => one.selectedIndex > 0);
    const key = orders[form.elements.sort.value];
    chosen = gallery.records.filter((record) =>
      kinds[form.elements.outcome.value](record)
      && SURE[surely.value](record.answers[0].sure)
      && filters.every((one) => record.f[one.dataset.filter] === one.value)
      && (!wanted || [record.id, record.question, ...(record.refs ?? []), ...record.answers.map((one) => one.text)].some((text) => (text ?? "").toLowerCase().includes(wanted))));
    const keys = new Map(chosen.map((record) => [record, key(record)]));
    chosen.sort((a, b) => keys.get(a) - keys.get(b));
    shown = 0;
    list.replaceChildren();
    add();
  };
  if (gallery.records.some((one) => one.boxes)) list.before(element("p", { class: "note" }, "Boxes: dashed green the reference, pink what was predicted."));
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", add);
  update();
}

function sortable(table) {
  const body = table.tBodies[0];
  const value = (row, place) => {
    const cell = row.cells[place];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = parseFloat(text.replaceAll(",", ""));
    return { text, number: Number.isNaN(number) ? null : number };
  };
  [...table.tHead.rows[0].cells].forEach((head, place) => {
    const button = element("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sorted = [...body.rows].sort((one, another) => {
        const a = value(one, place);
        const b = value(another, place);
        if (a.number !== null && b.number !== null) return a.number - b.number;
        if ((a.number === null) !== (b.number === null)) return a.number === null ? 1 : -1;
        return a.text.localeCompare(b.text);
      });
      body.append(...(down ? sorted.reverse() : sorted));
    });
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("[data-gallery]").forEach((root) => {
  start(root, data.galleries ? data.galleries[Number(root.dataset.gallery)] : data);
});
