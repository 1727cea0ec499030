// What the views make elements with. Texts go in as text nodes: nothing is read as HTML.

export const byId = (id) => document.getElementById(id);

// An element. attributes: on* are listeners, booleans set or leave out, all else is set as it is.
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const button = (text, onclick, more = {}) => el("button", { type: "button", onclick, ...more }, text);

// Sets a text only where it changes, so that screen readers do not say it again.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const told = (text) => { say(byId("fault"), ""); say(byId("said"), text); };
export const failed = (error) => {
  if (error.name === "AbortError") return;
  say(byId("said"), "");
  say(byId("fault"), error.message);
};

// Does something for a button: not twice at once, and with what went wrong said.
export async function doing(control, work) {
  if (control.getAttribute("aria-busy")) return;
  control.setAttribute("aria-busy", "true");
  say(byId("fault"), "");
  try {
    await work();
  } catch (error) {
    failed(error);
  } finally {
    control.removeAttribute("aria-busy");
  }
}

// Elements for items by key: those that stay are kept, so that focus and open parts stay as well.
export function keyed(list, known, items, keyOf, make) {
  const keys = new Set(items.map(keyOf));
  for (const [key, card] of known) {
    if (keys.has(key)) continue;
    card.gone?.();
    card.element.remove();
    known.delete(key);
  }
  items.forEach((item, at) => {
    const key = keyOf(item);
    if (!known.has(key)) known.set(key, make(item));
    const { element } = known.get(key);
    if (list.children[at] !== element) list.insertBefore(element, list.children[at] ?? null);
    known.get(key).update(item);
  });
}

export function options(select, items, wanted) {
  const before = wanted ?? select.value;
  select.replaceChildren(...items.map(([value, text]) => el("option", { value }, text ?? value)));
  if (items.some(([value]) => value === before)) select.value = before;
}

export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value != null && value !== "");
  return el("dl", {}, ...shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));
}

// true where the user agrees.
export function confirmed(text, word = "Delete") {
  const dialog = byId("confirm");
  const yes = dialog.querySelector("[name=yes]"), no = dialog.querySelector("[name=no]");
  byId("confirm-text").textContent = text;
  yes.textContent = word;
  return new Promise((resolve) => {
    let agreed = false;
    yes.onclick = () => { agreed = true; dialog.close(); };
    no.onclick = () => dialog.close();
    dialog.onclose = () => resolve(agreed);
    dialog.showModal();
    no.focus();
  });
}

export const number = (value) => (value == null ? "" : value.toLocaleString("en"));
export const loss = (value) => (value == null ? "" : value >= 0.01 ? value.toFixed(3) : value.toExponential(1));
export const when = (seconds) => (seconds ? new Date(1000 * seconds).toLocaleString() : "");
export function bytes(size) {
  if (!size) return "";
  const at = Math.min(3, Math.floor(Math.log10(size) / 3));
  return `${(size / 1000 ** at).toFixed(at ? 1 : 0)} ${["bytes", "kB", "MB", "GB"][at]}`;
}
