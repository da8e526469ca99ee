"use strict";
// What the server answers is put on the page as text alone: it may hold anything.
const at = (id) => document.getElementById(id);
const made = (tag, text, cls) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (cls) element.className = cls;
  return element;
};
const number = (value, digits = 0) =>
  value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });

// Paths are relative, so that the page works below a proxy's path.
async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (at("key").value) headers.Authorization = `Bearer ${at("key").value}`;
  const answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  if (answer.status === 401) at("key-row").hidden = false;
  const content = await answer.json().catch(() => null);
  if (!answer.ok) {
    const error = content && content.error;
    const problem = new Error((error && error.message) || (typeof error === "string" && error) || `status ${answer.status}`);
    problem.position = error && error.position;
    throw problem;
  }
  return content;
}

function choices(select, names, none) {
  const chosen = select.value;
  select.replaceChildren();
  for (const name of names) {
    const option = made("option", name === "" ? none : name);
    option.value = name;
    select.append(option);
  }
  if (names.includes(chosen)) select.value = chosen;
}

// A form asks, and what it asked for is shown; an error stands in its place.
function form(section, action) {
  const element = at(section).querySelector("form");
  element.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = element.querySelector("button"), trouble = at(section).querySelector(".trouble");
    button.disabled = true;
    trouble.hidden = true;
    try {
      await action(element.elements);
    } catch (error) {
      trouble.textContent = error.message;
      trouble.hidden = false;
      if (error.position) element.elements.where.setSelectionRange(...error.position);
    } finally {
      button.disabled = false;
    }
  });
}

const shown = (value) => (value === null ? "–" : Array.isArray(value) ? value.join(", ") : String(value));

function item(score, name, text, metadata) {
  const element = made("li"), head = made("div", undefined, "head");
  head.append(made("b", score.toFixed(4)), made("span", name, "quiet"));
  element.append(head);
  if (text !== null && text !== undefined) element.append(made("p", text, "text"));
  if (metadata) {
    const list = made("dl");
    for (const [key, value] of Object.entries(metadata)) {
      const row = made("div");
      row.append(made("dt", key), made("dd", shown(value)));
      list.append(row);
    }
    element.append(list);
  }
  return element;
}

function list(section, items) {
  at(section).querySelector(".hits").replaceChildren(...(items.length ? items : [made("li", "nothing was found", "quiet")]));
}

form("search", async (fields) => {
  list("search", [made("li", "…", "quiet")]);
  const body = { query: fields.query.value, top_k: Number(fields.top_k.value) };
  if (fields.where.value.trim()) body.where = fields.where.value;
  if (fields.mode.value && fields.mode.value !== "dense") body.mode = fields.mode.value;
  if (fields.rerank.value) body.rerank = fields.rerank.value;
  try {
    const answer = await ask("v1/search", body);
    list("search", answer.results[0].map((hit) =>
      item(hit.score, hit.passage === undefined ? hit.id : `${hit.id}, passage ${hit.passage + 1}`, hit.text, hit.metadata)));
  } catch (error) {
    at("search").querySelector(".hits").replaceChildren();
    throw error;
  }
});

form("compare", async (fields) => {
  const model = fields.model.value, texts = [fields.first.value, fields.second.value];
  const names = fields.query.checked ? [`${model}:query`, `${model}:document`] : [model, model];
  const vectors = await Promise.all(texts.map(async (text, place) =>
    (await ask("v1/embeddings", { model: names[place], input: text })).data[0].embedding));
  const dot = (a, b) => a.reduce((sum, value, place) => sum + value * b[place], 0);
  const cosine = dot(...vectors) / Math.sqrt(dot(vectors[0], vectors[0]) * dot(vectors[1], vectors[1]));
  const answer = at("compare").querySelector(".answer");
  answer.replaceChildren(`cosine ${cosine.toFixed(4)}`, made("small", `${names[0]} and ${names[1]}, ${vectors[0].length} dimensions`));
});

form("rerank", async (fields) => {
  const documents = fields.documents.value.split("\n").filter((line) => line.trim());
  const answer = await ask("v2/rerank", { model: fields.model.value, query: fields.query.value, documents });
  list("rerank", answer.results.map((each) => item(each.relevance_score, `line ${each.index + 1}`, documents[each.index])));
});

const SECONDS = 2, KEPT = 60, rates = [];

function drawn() {
  const most = Math.max(1, ...rates);
  const points = rates.map((rate, place) => `${(560 * (KEPT - rates.length + place)) / (KEPT - 1)},${86 - (80 * rate) / most}`);
  at("line").setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
  at("most").textContent = number(most > 1 ? most : 0);
}

let known = "";
function about(state) {
  at("about").textContent = `bgekit ${state.version}`;
  const text = JSON.stringify([state.models, state.index]);
  if (text === known) return;
  known = text;
  const names = (kind) => state.models.filter((model) => model.kind === kind).map((model) => model.name);
  const embedders = names("embedder"), rerankers = names("reranker");
  at("compare").hidden = !embedders.length;
  at("rerank").hidden = !rerankers.length;
  choices(at("compare").querySelector("select"), embedders);
  choices(at("rerank").querySelector("select"), rerankers);
  at("search").hidden = !state.index;
  at("search").querySelector(".rerankers").hidden = !rerankers.length;
  choices(at("search").querySelector("select[name=rerank]"), ["", ...rerankers], "none");
  if (state.index) {
    choices(at("search").querySelector("select[name=mode]"), state.index.modes);
    at("search").querySelector(".modes").hidden = state.index.modes.length < 2;
    const columns = state.index.columns.map((column) => column.name).join(", ") || "none";
    at("index-about").textContent = `${number(state.index.rows)} ${state.index.passages ? "passages" : "texts"} of ${state.index.model}; metadata: ${columns}`;
    at("search").querySelector("input[name=where]").closest("label").hidden = !state.index.columns.length;
  }
  at("models").replaceChildren(...state.models.map((model) => {
    const row = made("tr");
    row.append(made("th", model.name), made("td", model.kind), made("td", number(model.max_length), "n"), made("td", number(model.dimension), "n"));
    return row;
  }));
}

async function seen() {
  try {
    const state = await ask("ui/state");
    about(state);
    for (const name of ["queued_requests", "queued_tokens", "running_batches", "tokens_per_second"])
      at(name).textContent = number(state.load[name]);
    rates.push(state.load.tokens_per_second || 0);
    if (rates.length > KEPT) rates.shift();
    drawn();
    at("trouble").hidden = true;
  } catch (error) {
    at("trouble").textContent = error.message;
    at("trouble").hidden = false;
  }
}
let next;
async function look() {
  clearTimeout(next);
  if (!document.hidden) await seen();
  next = setTimeout(look, 1000 * SECONDS);
}
at("key-row").addEventListener("submit", (event) => {
  event.preventDefault();
  look();
});
look();
