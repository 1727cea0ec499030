// Requests to this server, with the key where it asks for one.

import { byId, say } from "./dom.js";

const KEY = "mlx-ft key"; // in this tab's storage alone

export class Fault extends Error {
  constructor(message, status, wait = null) {
    super(message);
    this.status = status;
    this.wait = wait; // seconds after which it can be tried again
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const forgetKey = () => sessionStorage.removeItem(KEY);

let asking = null;

// Asks for the key, once for all that wait for it.
function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key"), form = byId("key-form");
    say(byId("key-fault"), hasKey() ? "That key is wrong." : "");
    dialog.oncancel = (event) => event.preventDefault(); // there is nothing to see without it
    dialog.onclose = () => { if (asking) dialog.showModal(); };
    form.onsubmit = (event) => {
      event.preventDefault();
      const given = form.elements.key.value.trim();
      if (!/^[\x21-\x7e]+$/.test(given)) { // nothing else can be sent in a header
        say(byId("key-fault"), "A key has no spaces, and only letters, digits and signs of ASCII.");
        return;
      }
      sessionStorage.setItem(KEY, given);
      form.reset();
      asking = null;
      dialog.close();
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}

function headers(more) {
  const key = sessionStorage.getItem(KEY);
  return key === null ? more : { ...more, authorization: `Bearer ${key}` };
}

// The response to a request; raises Fault with the server's words for any other than a good one.
export async function ask(method, path, { body, json, signal, more = {} } = {}) {
  const given = json === undefined ? { body } : { body: JSON.stringify(json) };
  const kind = json === undefined ? {} : { "content-type": "application/json" };
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    let response;
    try {
      response = await fetch(path, { method, signal, headers: headers({ ...kind, ...more }), ...given });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Fault("The server does not answer. Is it still running?", 0, 5);
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await fault(response);
    await response.body?.cancel();
    if (key === sessionStorage.getItem(KEY)) await askForKey(); // not where a new one was given meanwhile
  }
}

async function fault(response) {
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no answer of its own, as from a proxy */ }
  const wait = Number.parseInt(response.headers.get("retry-after"), 10);
  return new Fault(message, response.status, Number.isNaN(wait) ? null : wait);
}

export const get = async (path, more) => (await ask("GET", path, more)).json();
export const post = async (path, json, more) => (await ask("POST", path, { json, ...more })).json();
export const remove = async (path) => (await ask("DELETE", path)).json();

// Lines of an answer as they come.
export async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      yield* parts;
    }
    if (rest) yield rest;
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Server-sent events as {name, data}; comments are left out.
export async function* events(response) {
  let name = "message", data = [];
  for await (const line of lines(response)) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
    else if (line === "" && data.length) {
      yield { name, data: data.join("\n") };
      name = "message";
      data = [];
    }
  }
}

export const encoded = encodeURIComponent;
