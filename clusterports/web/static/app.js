// The page of `clusterports serve`. What comes from outside becomes text nodes only, and is shown as `show` makes it.

const $ = (id) => document.getElementById(id);
const HEARTBEAT = 5000; // ms between two looks at the host that is open: a renewal is no event
const MOST_ROWS = 500; // of a table, until more are asked for
const CHUNK = 64; // numbers of a large range that are drawn together
const SMALL = 1024; // a range of so many numbers is drawn whole
const LONGEST = 200; // characters of a text in a table
const MOST_CHUNKS = 24;
const SILENCE = 45000; // ms without a sign of life, of which there is one every 15 s, after which nobody is there
const PATIENCE = 30000; // ms for an answer

// ---------------------------------------------------------------- text

const UNSEEN = /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu;

/** The text with what cannot be seen, or would turn what stands around it, as an escape: \u202e. */
function show(text, longest = LONGEST) {
  const part = text.length > longest ? `${text.slice(0, longest)}…` : text;
  return part.replace(UNSEEN, (c) => {
    const code = c.codePointAt(0);
    return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

const number = new Intl.NumberFormat("en").format;
const some = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
const clock = (iso) => new Date(iso).toLocaleTimeString([], { hour12: false });
const moment = (iso) => new Date(iso).toLocaleString("sv");
const order = new Intl.Collator("en", { numeric: true }).compare;

function span(seconds) {
  if (seconds <= 0) return "0 s";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} m ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${String(minutes % 60).padStart(2, "0")} m`;
  return `${Math.floor(hours / 24)} d ${String(hours % 24).padStart(2, "0")} h`;
}

/** An element. Strings among the children become text. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A name from outside, kept apart from the text around it. */
function name(text) {
  const shown = show(text);
  return h("bdi", { title: shown.length > 30 ? show(text, 2000) : null }, shown);
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const hostName = (host) => (host === "" ? "Whole cluster" : name(host));

function link(host, port) {
  const wanted = new URLSearchParams({ host });
  if (port !== undefined) wanted.set("port", port);
  return `#${wanted}`;
}

// ---------------------------------------------------------------- state

const state = {
  columns: [],
  ranges: [],
  rows: new Map(), // by host, as the server sent them
  store: { readable: true, since: "", error: "" },
  unreadable: new Map(),
  ahead: 0, // ms by which our clock is ahead of the server's
  seen: null, // when, by the server's clock, the map was as it is shown
  allSeen: null, // when all of it was read, not only what changed
  heard: 0, // when something came of those that follow
  source: null,
  connected: true,
  id: "",
};

const counts = (range, host) => {
  const found = state.rows.get(host)?.ranges[range.name];
  const [held, cooling, foreign, free, excluded] = found ?? [0, 0, 0, range.size - range.excluded, range.excluded];
  const taken = held + cooling + foreign;
  return { held, cooling, foreign, free, excluded, taken, usable: taken + free, size: range.size };
};

const isUnknown = (host) => state.unreadable.has(host) && !state.rows.has(host);

const fullness = (c) => (c.usable ? c.taken / c.usable : 0);

function level(c) {
  if (c.usable && c.free === 0) return "full";
  const part = fullness(c);
  if (part >= 0.9) return "nearly";
  return part === 0 ? "l0" : part < 0.25 ? "l1" : part < 0.5 ? "l2" : part < 0.75 ? "l3" : "l4";
}

/** Where the parts of a bar end, as custom properties. A part that is there is at least seen. */
function setBar(element, c) {
  const least = (value) => (value ? Math.max((100 * value) / c.size, 1.5) : 0);
  let end = 0;
  for (const part of ["held", "cooling", "foreign", "excluded"]) {
    end += least(c[part]);
    element.style.setProperty(`--${part}-end`, `${Math.min(end, 100).toFixed(1)}%`);
  }
}

function told(c) {
  const parts = ["held", "cooling", "foreign"].filter((key) => c[key]).map((key) => `${number(c[key])} ${key}`);
  return [...parts, `${number(c.free)} free`, c.excluded ? `${number(c.excluded)} excluded` : ""].filter(Boolean).join(", ");
}

/** What is taken but not held. */
function others(c) {
  const parts = ["cooling", "foreign"].filter((key) => c[key]).map((key) => `${number(c[key])} ${key}`);
  return parts.length ? `, of which ${parts.join(", ")}` : "";
}

// ---------------------------------------------------------------- the map

const table = { rows: new Map(), columns: [], filter: "", sort: "name", current: null };

function drawHead() {
  table.columns = state.ranges.filter((range) => range.scope === "host");
  $("map").style.setProperty("--columns", table.columns.length);
  const heads = table.columns.map((range) =>
    h("th", { scope: "col", role: "columnheader" }, name(range.name), h("small", {}, `${range.first}–${range.last}`)),
  );
  const row = h("tr", { role: "row" }, h("th", { scope: "col", role: "columnheader" }, "Host"), ...heads);
  row.append(h("th", { scope: "col", role: "columnheader" }, "Leases"));
  $("map").tHead.replaceChildren(row);
}

function makeRow(host) {
  const anchor = h("a", { href: link(host), tabindex: "-1" }, name(host));
  const tr = h("tr", { role: "row" }, h("th", { scope: "row", role: "rowheader" }, anchor));
  const cells = table.columns.map(() => h("td", { role: "cell" }));
  const leases = h("td", { role: "cell", class: "leases" });
  tr.append(...cells, leases);
  return { host, tr, anchor, cells, leases, told: [], full: 0, folded: host.toLowerCase() };
}

function patchRow(entry) {
  const row = state.rows.get(entry.host);
  entry.full = 0;
  table.columns.forEach((range, i) => {
    const unknown = isUnknown(entry.host);
    const c = counts(range, entry.host);
    if (!unknown) entry.full = Math.max(entry.full, fullness(c));
    const text = unknown ? "cannot be read" : told(c);
    if (entry.told[i] === text) return;
    entry.told[i] = text;
    const cell = entry.cells[i];
    if (unknown) {
      cell.className = "";
      cell.title = `${show(range.name)}: ${text}`;
      cell.removeAttribute("style");
      cell.replaceChildren("–");
      return;
    }
    const kind = level(c);
    cell.className = kind;
    cell.title = `${show(range.name)}: ${text}`;
    setBar(cell, c);
    cell.replaceChildren(`${number(c.taken)}/${number(c.usable)}`);
    if (c.cooling) cell.append(" ", h("abbr", { title: "cooling" }, `${number(c.cooling)}c`));
    if (c.foreign) cell.append(" ", h("abbr", { title: "foreign" }, `${number(c.foreign)}f`));
    if (kind === "full") cell.append(" ", h("b", {}, "full"));
  });
  const leases = [];
  if (state.unreadable.has(entry.host)) leases.push(h("b", { class: "bad", title: show(state.unreadable.get(entry.host)) }, "unreadable"));
  if (row) {
    leases.push(`${number(row.live)}`);
    if (row.jeopardy) leases.push(h("b", { class: "warn" }, `${number(row.jeopardy)} in jeopardy`));
    if (row.expired) leases.push(h("b", { class: "warn" }, `${number(row.expired)} expired`));
    if (row.waiting) leases.push(h("b", { class: "warn" }, `${number(row.waiting)} waiting`));
    if (row.recovering_s) leases.push(h("b", { class: "warn" }, `recovering ${span(Math.ceil(row.recovering_s))}`));
  }
  const text = leases.map((one) => one.textContent ?? one).join(" ");
  if (entry.tr.dataset.leases !== text) {
    entry.tr.dataset.leases = text;
    entry.leases.replaceChildren(...leases.flatMap((one) => [one, " "]));
  }
}

function patchMap(hosts, gone) {
  for (const host of gone) {
    table.rows.get(host)?.tr.remove();
    table.rows.delete(host);
  }
  let fresh = false;
  for (const host of hosts) {
    if (host === "") continue;
    let entry = table.rows.get(host);
    if (!entry) {
      entry = makeRow(host);
      table.rows.set(host, entry);
      fresh = true;
    }
    patchRow(entry);
  }
  if (fresh || gone.length || table.sort === "full") arrange();
  drawRanges();
}

/** Put the rows in order, moving as few as possible, and hide what the filter leaves out. */
function arrange() {
  const entries = [...table.rows.values()];
  entries.sort((a, b) => (table.sort === "full" ? b.full - a.full : 0) || order(a.host, b.host));
  const body = $("map").tBodies[0];
  const focused = document.activeElement;
  let next = body.firstElementChild;
  let shown = 0;
  for (const entry of entries) {
    const hide = !entry.folded.includes(table.filter);
    if (entry.tr.hidden !== hide) entry.tr.hidden = hide;
    shown += !hide;
    if (entry.tr === next) next = next.nextElementSibling;
    else body.insertBefore(entry.tr, next);
  }
  if (body.contains(focused) && focused !== document.activeElement) focused.focus({ preventScroll: true });
  setCurrent(table.current !== null && !table.current.tr.hidden ? table.current : entries.find((one) => !one.tr.hidden));
  const all = entries.length;
  setText($("count"), shown === all ? some(all, "host") : `${number(shown)} of ${some(all, "host")}`);
}

/** The one host that Tab reaches. */
function setCurrent(entry) {
  if (table.current === entry) return;
  table.current?.anchor.setAttribute("tabindex", "-1");
  table.current = entry ?? null;
  entry?.anchor.setAttribute("tabindex", "0");
}

function moveTo(row) {
  const entry = row && [...table.rows.values()].find((one) => one.tr === row);
  if (!entry) return;
  setCurrent(entry);
  entry.anchor.focus();
}

function onMapKey(event) {
  const row = event.target.closest("tr");
  const shown = (from, step) => {
    let one = from?.[step];
    while (one?.hidden) one = one[step];
    return one;
  };
  const body = $("map").tBodies[0];
  const ends = { Home: body.firstElementChild, End: body.lastElementChild };
  if (event.altKey || event.ctrlKey || event.metaKey || !row) return;
  if (event.key === "ArrowDown") moveTo(shown(row, "nextElementSibling"));
  else if (event.key === "ArrowUp") moveTo(shown(row, "previousElementSibling"));
  else if (event.key === "Home") moveTo(ends.Home?.hidden ? shown(ends.Home, "nextElementSibling") : ends.Home);
  else if (event.key === "End") moveTo(ends.End?.hidden ? shown(ends.End, "previousElementSibling") : ends.End);
  else return;
  event.preventDefault();
}

/** A card for each range: all hosts together, or the whole cluster. */
function drawRanges() {
  const hosts = [...state.rows.keys()].filter((host) => host !== "");
  const cards = state.ranges.map((range) => {
    const wide = range.scope === "cluster";
    const unknown = wide && isUnknown("");
    const sum = { held: 0, cooling: 0, foreign: 0, free: 0, excluded: 0, taken: 0, usable: 0, size: 0 };
    let fullest = null;
    for (const host of wide ? [""] : hosts) {
      const c = counts(range, host);
      for (const key of Object.keys(sum)) sum[key] += c[key];
      if (fullest === null || fullness(c) > fullness(fullest.c)) fullest = { host, c };
    }
    const bar = h("div", { class: "bar" });
    if (!unknown) setBar(bar, { ...sum, size: sum.size || 1 });
    const where = wide ? "once in the whole cluster" : `on each of ${some(hosts.length, "host")}`;
    const title = wide ? h("a", { href: link("") }, name(range.name)) : name(range.name);
    const card = h(
      "article",
      { class: wide ? "card wide" : "card" },
      h("h3", {}, title, " ", h("small", {}, `${range.first}–${range.last}`)),
      h("p", { class: "muted" }, where),
      bar,
      unknown
        ? h("p", {}, h("b", { class: "bad" }, "unreadable"))
        : h("p", {}, h("b", {}, `${number(sum.taken)}/${number(sum.usable)}`), ` taken${others(sum)}`),
    );
    if (!wide && fullest && fullest.c.taken) {
      const end = fullest.c.free === 0 ? " full" : "";
      const text = ` ${number(fullest.c.taken)}/${number(fullest.c.usable)}${end}`;
      card.append(h("p", { class: `fullest ${level(fullest.c)}` }, "Fullest: ", h("a", { href: link(fullest.host) }, name(fullest.host)), text));
    }
    return card;
  });
  const focused = document.activeElement?.closest("#ranges a")?.getAttribute("href");
  $("ranges").replaceChildren(...cards);
  if (focused) [...$("ranges").querySelectorAll("a")].find((one) => one.getAttribute("href") === focused)?.focus();
}

// ---------------------------------------------------------------- the header

function drawState() {
  const { store, connected, ahead, unreadable } = state;
  const seen = state.seen === null ? null : state.seen + ahead;
  let kind = "live";
  let text = "Reading the store…";
  let banner = "";
  const shown = seen === null ? "nothing is known yet" : `this is how it was at ${clock(seen)}`;
  if (!connected) {
    [kind, text] = ["away", "No connection"];
    banner = `The server of this page does not answer; ${shown}.`;
  } else if (!store.readable) {
    [kind, text] = ["away", `Store away since ${clock(Date.parse(store.since) + ahead)}`];
    banner = `The store cannot be read since ${moment(Date.parse(store.since) + ahead)}; ${shown}. ${show(store.error, 500)}`;
  } else if (seen !== null) {
    text = `Live, all read ${span(Math.max(0, (Date.now() - ahead - state.allSeen) / 1000))} ago`;
    const count = unreadable.size - unreadable.has("");
    if (count) text += `; ${some(count, "host")} cannot be read`;
    if (unreadable.has("")) text += "; the whole cluster's ports cannot be read";
  }
  if ($("state").dataset.kind !== kind) {
    if ($("state").dataset.kind) setText($("news"), kind === "away" ? banner : "Live again.");
    $("state").dataset.kind = kind;
    document.body.classList.toggle("stale", kind === "away");
  }
  setText($("state-text"), text);
  setText($("banner"), banner);
  $("banner").hidden = banner === "";
}

// ---------------------------------------------------------------- a host

const view = { host: null, port: null, document: null, got: 0, events: [], more: false, trouble: "", asked: 0, shape: "" };

const MOVING = new Set(["generated_at", "expires_in_s", "free_in_s", "recovering_s", "since"]);

async function fetchJson(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(PATIENCE) });
  if (answer.status === 401) {
    location.reload();
    await new Promise(() => {}); // until the login page is there
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error ?? answer.statusText);
  return { content, date: answer.headers.get("date") };
}

async function loadHost(withEvents) {
  const { host, port } = view;
  const asked = ++view.asked;
  try {
    const status = fetchJson(`/api/status?${new URLSearchParams({ host })}`);
    const events = withEvents ? loadEvents(host, port) : view.events;
    const [{ content }, found] = [await status, await events];
    if (asked !== view.asked || host !== view.host) return;
    Object.assign(view, { document: content, got: performance.now(), events: found, trouble: "" });
  } catch (error) {
    if (asked !== view.asked) return;
    view.trouble = String(error.message);
  }
  drawHost();
}

async function loadEvents(host, port) {
  const wanted = { limit: 200 };
  if (port !== null) wanted.port = port.split("/")[0];
  const where = host !== "" ? [{ host }] : state.ranges.filter((one) => one.scope === "cluster").map((one) => ({ range: one.name }));
  const answers = where.map((one) => fetchJson(`/api/events?${new URLSearchParams({ ...wanted, ...one })}`));
  const events = (await Promise.all(answers)).flatMap(({ content }) => content.events);
  return events.sort((a, b) => (a.at < b.at ? 1 : a.at > b.at ? -1 : 0));
}

function isOurs(event) {
  const wide = state.ranges.some((range) => range.name === event.range && range.scope === "cluster");
  const here = view.host === "" ? wide || event.host === "" : event.host === view.host;
  return here && (view.port === null || String(event.number) === view.port.split("/")[0]);
}

/** Seconds that are counted down or up from when the document came. */
function ticking(seconds, up = false) {
  const element = h("span", { class: "time", "data-from": seconds, "data-up": up });
  tick(element);
  return element;
}

function tick(element) {
  const passed = (performance.now() - view.got) / 1000;
  const from = Number(element.dataset.from);
  setText(element, span(element.hasAttribute("data-up") ? from + passed : from - passed));
}

function drawHost() {
  if (view.host === null) return;
  const section = $("host-view");
  const focused = section.contains(document.activeElement) ? (document.activeElement.dataset.key ?? document.activeElement.id) : null;
  const status = view.document?.hosts.find((one) => one.host === view.host);
  const parts = [
    h("p", {}, h("a", { href: "#", "data-key": "back" }, "← All hosts")),
    h("h2", { id: "host-title", tabindex: "-1" }, hostName(view.host)),
  ];
  const damaged = view.document?.unreadable.find((one) => one.host === view.host);
  if (view.trouble) parts.push(h("p", { class: "bad" }, `Cannot be read now: ${show(view.trouble, 500)}`));
  if (damaged) parts.push(h("p", { class: "bad" }, `Its data cannot be read: ${show(damaged.error, 500)}`));
  if (!view.document) parts.push(h("p", { class: "muted" }, view.trouble ? "" : "Reading…"));
  else if (!status && !damaged) parts.push(h("p", { class: "muted" }, "Nobody has used a port here yet."));
  if (status) {
    if (status.recovering_s) parts.push(h("p", { class: "warn" }, "The store lost data: no port is given out here for ", ticking(status.recovering_s), "."));
    if (status.waiting) parts.push(h("p", { class: "warn" }, `${some(status.waiting, "caller")} ${status.waiting === 1 ? "waits" : "wait"} for a port.`));
    parts.push(...drawGrids(status), ...drawPorts(status), ...drawLeases(status));
  }
  if (view.document) parts.push(...drawEvents());
  // What differs in nothing but times stays: text that is being selected, a table that was scrolled.
  const shape = JSON.stringify([view.host, view.port, view.more, view.trouble, view.document, view.events], (key, value) => (MOVING.has(key) ? typeof value : value));
  if (shape === view.shape) {
    const times = parts.flatMap((part) => [...part.querySelectorAll(".time")]);
    section.querySelectorAll(".time").forEach((element, i) => {
      element.dataset.from = times[i].dataset.from;
      tick(element);
    });
    return;
  }
  view.shape = shape;
  const scrolled = [...section.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
  section.replaceChildren(...parts);
  section.querySelectorAll(".scroll").forEach((one, i) => {
    one.scrollLeft = scrolled[i] ?? 0;
  });
  if (focused) (section.querySelector(`[data-key="${CSS.escape(focused)}"]`) ?? $("host-title")).focus({ preventScroll: true });
}

const keyOf = (port) => `${port.number}/${port.protocol}`;

function drawGrids(status) {
  const byNumber = new Map();
  const rank = { held: 0, cooling: 1, foreign: 2 };
  for (const port of status.ports) {
    const other = byNumber.get(port.number);
    if (!other || rank[port.state] < rank[other.state]) byNumber.set(port.number, port);
  }
  const scope = view.host === "" ? "cluster" : "host";
  const found = [];
  for (const range of view.document.ranges.filter((one) => one.scope === scope)) {
    const there = range.hosts.find((one) => one.host === view.host);
    const c = there ? { ...there, taken: there.held + there.cooling + there.foreign, size: range.size } : null;
    if (c) c.usable = c.taken + c.free;
    const own = status.ports.filter((port) => port.range === range.name);
    let chunks = [[range.first, range.last]];
    if (range.size > SMALL) {
      const starts = [...new Set(own.map((port) => port.number - ((port.number - range.first) % CHUNK)))].sort((a, b) => a - b);
      chunks = starts.slice(0, MOST_CHUNKS).map((first) => [first, Math.min(first + CHUNK - 1, range.last)]);
    }
    const excluded = (n) => range.exclude.some(([first, last]) => first <= n && n <= last);
    const title = h("h3", {}, name(range.name), " ", h("small", {}, `${range.first}–${range.last}`));
    const text = c ? `${number(c.taken)}/${number(c.usable)} taken: ${told(c)}` : "";
    const block = h("article", { class: "range" }, title, h("p", { class: "muted" }, text));
    for (const [first, last] of chunks) {
      const list = h("ol", { class: "grid", "aria-label": `Numbers ${first} to ${last}` });
      for (let n = first; n <= last; n += 1) {
        const port = byNumber.get(n);
        if (port) {
          const label = `${n} ${port.state}${port.owner ? `, ${show(port.owner, 80)}` : ""}`;
          const chosen = view.port !== null && view.port.split("/")[0] === String(n);
          const key = `grid-${range.name}-${n}`;
          const anchor = h("a", { href: link(view.host, keyOf(port)), "aria-label": label, title: label, "data-key": key, "aria-current": chosen ? "true" : null }, String(n % 1000).padStart(3, "0"));
          list.append(h("li", { class: port.state }, anchor));
        } else {
          const kind = excluded(n) ? "excluded" : "free";
          list.append(h("li", { class: kind, title: `${n} ${kind}`, "aria-hidden": "true" }, String(n % 1000).padStart(3, "0")));
        }
      }
      if (range.size > SMALL) block.append(h("p", { class: "muted" }, `${first}–${last}`));
      block.append(list);
    }
    if (range.size > SMALL && chunks.length === 0) block.classList.add("slim");
    found.push(block);
  }
  return [h("div", { class: "grids" }, ...found)];
}

function makeTable(caption, heads, rows) {
  const head = h("tr", {}, ...heads.map((text) => h("th", { scope: "col" }, text)));
  return h("div", { class: "scroll" }, h("table", { class: "plain" }, h("caption", {}, caption), h("thead", {}, head), h("tbody", {}, ...rows)));
}

function drawPorts(status) {
  if (!status.ports.length) return [h("p", { class: "muted" }, "No port is taken here.")];
  const left = new Map(status.leases.map((lease) => [lease.lease, lease]));
  const now = Date.parse(view.document.generated_at);
  const wide = view.host === "";
  const chosen = status.ports.filter((port) => keyOf(port) === view.port);
  const shown = view.more ? status.ports : [...new Set([...chosen, ...status.ports.slice(0, MOST_ROWS)])];
  shown.sort((a, b) => a.number - b.number);
  const rows = shown.map((port) => {
    const lease = left.get(port.lease);
    let until = "–";
    if (port.free_in_s !== null) until = ticking(port.free_in_s);
    else if (lease) until = lease.grace ? "grace" : lease.state === "live" ? ticking(lease.expires_in_s) : "expired";
    const labels = Object.entries(port.labels).map(([key, value]) => h("span", { class: "label" }, name(key), "=", name(value)));
    const cells = [
      h("span", { class: `chip ${port.state}` }, port.state),
      port.owner ? name(port.owner) : "–",
      port.range === null ? "–" : name(port.range),
      until,
      ticking((now - Date.parse(port.since)) / 1000, true),
      name(port.instance),
      h("span", {}, ...labels),
      String(port.fence),
    ];
    if (wide) cells.splice(2, 0, name(port.host));
    const text = `${port.number}/${port.protocol}`;
    const anchor = h("a", { href: link(view.host, keyOf(port)), "data-key": `port-${text}`, "aria-current": text === view.port ? "true" : null }, text);
    if (port.outside) cells[wide ? 3 : 2] = h("span", {}, cells[wide ? 3 : 2], h("span", { class: "warn" }, " no longer part of it"));
    return h("tr", { class: text === view.port ? "chosen" : null }, h("th", { scope: "row" }, anchor), ...cells.map((cell) => h("td", {}, cell)));
  });
  const heads = ["Port", "State", "Owner", "Range", "Time left", "Age", "Instance", "Labels", "Fence"];
  if (wide) heads.splice(3, 0, "Host");
  const parts = [makeTable("Ports", heads, rows)];
  if (shown.length < status.ports.length) {
    const more = h("button", { type: "button", "data-key": "more" }, `Show all ${number(status.ports.length)}`);
    more.addEventListener("click", () => { view.more = true; drawHost(); });
    parts.push(h("p", {}, more));
  }
  return parts;
}

function drawLeases(status) {
  if (!status.leases.length) return [];
  const rows = status.leases.map((lease) => {
    const word = lease.grace ? "grace" : lease.state;
    const until = lease.state === "live" ? ticking(lease.expires_in_s) : "–";
    const kind = h("span", { class: lease.state === "live" ? null : "warn" }, word);
    return h("tr", {}, h("th", { scope: "row" }, name(lease.instance)), ...[kind, until, number(lease.ports), String(lease.lease)].map((cell) => h("td", {}, cell)));
  });
  return [makeTable("Leases", ["Instance", "State", "Time left", "Ports", "Lease"], rows)];
}

function drawEvents() {
  const one = view.port !== null;
  const caption = h("span", {}, one ? `Events of ${view.port} ` : "Events ");
  if (one) caption.append(h("a", { href: link(view.host), "data-key": "all-events" }, "all of this host"));
  if (!view.events.length) return [makeTable(caption, ["No events are known."], [])];
  const rows = view.events.slice(0, MOST_ROWS).map((event) => {
    const port = event.number === null ? "–" : `${event.number}/${event.protocol}`;
    const time = h("time", { datetime: event.at }, moment(event.at));
    const cells = [h("b", { class: event.kind }, event.kind), port, event.owner ? name(event.owner) : "–", event.range === null ? "–" : name(event.range), name(event.instance), String(event.fence || "–")];
    return h("tr", {}, h("th", { scope: "row" }, time), ...cells.map((cell) => h("td", {}, cell)));
  });
  return [makeTable(caption, ["Time", "Event", "Port", "Owner", "Range", "Instance", "Fence"], rows)];
}

// ---------------------------------------------------------------- where we are

function route() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const before = view.host;
  const scrolled = before === null;
  Object.assign(view, { host: wanted.get("host"), port: wanted.get("port") });
  $("hits").hidden = true;
  $("map-view").hidden = view.host !== null;
  $("host-view").hidden = view.host === null;
  if (view.host === null) {
    document.title = "clusterports";
    view.asked += 1;
    if (before !== null) {
      const entry = table.rows.get(before);
      if (entry && !entry.tr.hidden) moveTo(entry.tr);
      else $("main").focus();
    }
    return;
  }
  document.title = `${view.host === "" ? "Whole cluster" : show(view.host)} · clusterports`;
  if (before !== view.host) Object.assign(view, { document: null, events: [], more: false, trouble: "" });
  if (scrolled) scrollTo(0, 0);
  drawHost();
  if (before !== view.host) $("host-title").focus({ preventScroll: true });
  void loadHost(true);
}

// ---------------------------------------------------------------- search

let typing = 0;
let searches = 0;

async function search() {
  const wanted = $("search").value.trim();
  const mine = ++searches;
  if (!wanted) {
    $("hits").hidden = true;
    return;
  }
  let parts;
  try {
    const { content } = await fetchJson(`/api/search?${new URLSearchParams({ q: wanted })}`);
    const hosts = content.hosts.map((host) => h("li", {}, h("a", { href: link(host) }, hostName(host), h("small", {}, " host"))));
    const ports = content.ports.map((port) => {
      const wide = state.ranges.some((range) => range.name === port.range && range.scope === "cluster");
      const facts = h("small", {}, ` ${port.state}`, port.owner ? ", " : "", port.owner ? name(port.owner) : "");
      return h("li", {}, h("a", { href: link(wide ? "" : port.host, keyOf(port)) }, name(port.host), ` ${keyOf(port)}`, facts));
    });
    const count = hosts.length + ports.length;
    const text = count ? `${some(count, "hit")}${content.more ? ", and there are more" : ""}` : "Nothing is found";
    setText($("news"), text);
    parts = [h("p", { class: "muted" }, text), h("ul", {}, ...hosts, ...ports)];
  } catch (error) {
    parts = [h("p", { class: "bad" }, show(String(error.message)))];
  }
  if (mine !== searches) return;
  $("hits").replaceChildren(...parts);
  $("hits").hidden = false;
}

function listenToSearch() {
  $("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(search, 200);
  });
  const close = () => {
    $("hits").hidden = true;
  };
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    if (event.key === "ArrowDown" || event.key === "Enter") {
      event.preventDefault();
      $("hits").querySelector("a")?.focus();
    }
  });
  $("hits").addEventListener("keydown", (event) => {
    const links = [...$("hits").querySelectorAll("a")];
    const at = links.indexOf(document.activeElement);
    if (event.key === "Escape") {
      close();
      $("search").focus();
    } else if (event.key === "ArrowDown") links[Math.min(at + 1, links.length - 1)]?.focus();
    else if (event.key === "ArrowUp") (at > 0 ? links[at - 1] : $("search")).focus();
    else return;
    event.preventDefault();
  });
  $("hits").addEventListener("click", (event) => event.target.closest("a") && close());
  document.addEventListener("click", (event) => event.target.closest("search") || close());
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input, select, textarea")) {
      event.preventDefault();
      $("search").focus();
    }
  });
}

// ---------------------------------------------------------------- live

/** What of a change is about the store as a whole. */
function takeHead(content) {
  state.store = content.store;
  const before = [...state.unreadable.keys()];
  state.unreadable = new Map(content.unreadable.map((one) => [one.host, one.error]));
  if (content.generated_at) state.seen = Date.parse(content.generated_at);
  if (content.all_read_at) state.allSeen = Date.parse(content.all_read_at);
  return [...new Set([...before, ...state.unreadable.keys()])];
}

function takeMap(content, gone) {
  for (const host of gone) state.rows.delete(host);
  for (const row of content.hosts) state.rows.set(row.host, row);
  const touched = new Set([...content.hosts.map((row) => row.host), ...takeHead(content)]);
  const vanished = [...table.rows.keys()].filter((host) => !state.rows.has(host) && !state.unreadable.has(host));
  if (touched.size || vanished.length) patchMap([...touched].filter((host) => state.rows.has(host) || state.unreadable.has(host)), vanished);
  drawState();
  if (view.host !== null && touched.has(view.host)) void loadHost(false);
}

async function start() {
  try {
    const { content, date } = await fetchJson("/api/map");
    state.connected = true;
    state.ranges = content.ranges;
    state.id = content.id;
    state.ahead = date ? Date.now() - Date.parse(date) : 0;
    if (!table.columns.length) drawHead();
    const known = new Set(content.hosts.map((row) => row.host));
    takeMap(content, [...state.rows.keys()].filter((host) => !known.has(host)));
    if (!$("map").dataset.drawn) {
      arrange();
      drawRanges();
      $("map").dataset.drawn = "yes";
      performance.mark("map");
    }
  } catch (error) {
    state.connected = false;
    drawState();
    setTimeout(start, 3000);
    return;
  }
  follow();
}

function follow() {
  const source = new EventSource(`/api/stream?${new URLSearchParams({ id: state.id })}`);
  const hear = () => {
    state.heard = performance.now();
  };
  hear();
  state.source = source;
  source.addEventListener("open", () => {
    hear();
    state.connected = true;
    drawState();
  });
  source.addEventListener("error", () => {
    state.connected = false;
    drawState();
    if (source.readyState !== EventSource.CLOSED) return;
    state.source = null;
    setTimeout(start, 3000);
  });
  source.addEventListener("beat", hear);
  source.addEventListener("map", (event) => {
    hear();
    const content = JSON.parse(event.data);
    const known = new Set(content.hosts.map((row) => row.host));
    const gone = content.all ? [...state.rows.keys()].filter((host) => !known.has(host)) : content.gone;
    takeMap(content, gone);
  });
  source.addEventListener("event", (event) => {
    hear();
    const content = JSON.parse(event.data);
    if (view.host === null || !isOurs(content)) return;
    view.events.unshift(content);
    view.events.length = Math.min(view.events.length, 1000);
    void loadHost(false);
  });
}

/** A connection whose other end is gone, or stands still, does not say so. */
function listen() {
  if (state.source === null || performance.now() - state.heard < SILENCE) return;
  state.source.close();
  state.source = null;
  state.connected = false;
  void start();
}

$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});
$("filter").addEventListener("input", () => {
  table.filter = $("filter").value.trim().toLowerCase();
  arrange();
});
$("sort").addEventListener("change", () => {
  table.sort = $("sort").value;
  arrange();
});
$("map").addEventListener("keydown", onMapKey);
$("map").addEventListener("focusin", (event) => {
  const entry = [...table.rows.values()].find((one) => one.anchor === event.target);
  if (entry) setCurrent(entry);
});
addEventListener("hashchange", route);
listenToSearch();
setInterval(() => {
  listen();
  drawState();
  if (view.host !== null) $("host-view").querySelectorAll(".time").forEach(tick);
}, 1000);
document.addEventListener("visibilitychange", () => {
  if (view.host !== null && !document.hidden) void loadHost(true);
});
setInterval(() => {
  if (view.host !== null && !document.hidden) void loadHost(false);
}, HEARTBEAT);
route();
void start();
