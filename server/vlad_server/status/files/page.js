// The status page of vlad. Asks for data twice a second while it is visible, and draws what comes.
// Everything that came over the network is written as text, never as markup.
"use strict";

const POLL_MS = 500;
const RETRY_MS = 2000;
const WINDOW_S = 60;
const CHART_HEIGHT = 64;
const KEY_NAME = "vlad-api-key";

const $ = (id) => document.getElementById(id);
const page = {
  after: 0,
  robot: null, // the one whose frames and chunk are shown
  chosen: false, // by a person; otherwise the first one that asks for chunks is shown
  samples: [], // {at, robot, <stage>...}, oldest first; `at` in seconds of performance.now()
  columns: [],
  strips: new Map(),
};

const element = (name, text, className) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
};

// Key: in this tab only. Some browsers refuse storage; then it lasts until the page is left.
let key = "";
try { key = sessionStorage.getItem(KEY_NAME) || ""; } catch { /* no storage */ }
const keepKey = (value) => {
  key = value;
  try {
    if (value) sessionStorage.setItem(KEY_NAME, value);
    else sessionStorage.removeItem(KEY_NAME);
  } catch { /* no storage */ }
};

const seconds = (s) => {
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
};
const milliseconds = (ms) => (ms >= 100 ? ms.toFixed(0) : ms >= 10 ? ms.toFixed(1) : ms.toFixed(2));
const short = (x) => (Math.abs(x) >= 100 ? x.toFixed(0) : Number(x.toPrecision(3)).toString());
const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
const ascending = (values) => values.slice().sort((a, b) => a - b);

// A canvas in device pixels; returns its context in CSS pixels, or null while it is not visible.
const context = (canvas) => {
  const width = canvas.clientWidth;
  const scale = window.devicePixelRatio || 1;
  if (!width) return null;
  const [w, h] = [Math.round(width * scale), Math.round(CHART_HEIGHT * scale)];
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const drawing = canvas.getContext("2d");
  drawing.setTransform(scale, 0, 0, scale, 0, 0);
  drawing.clearRect(0, 0, width, CHART_HEIGHT);
  return { drawing, width };
};

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const chart = (title) => {
  const figure = element("figure", undefined, "chart");
  const caption = element("figcaption");
  const value = element("span");
  const canvas = element("canvas");
  caption.append(element("span", title), value);
  figure.append(caption, canvas);
  return { figure, value, canvas };
};

const grid = (drawing, width, top, text) => {
  drawing.strokeStyle = colour("--line");
  drawing.lineWidth = 1;
  for (const y of [0.5, CHART_HEIGHT / 2, CHART_HEIGHT - 0.5]) {
    drawing.beginPath(); drawing.moveTo(0, y); drawing.lineTo(width, y); drawing.stroke();
  }
  drawing.fillStyle = colour("--quiet");
  drawing.font = "10px system-ui, sans-serif";
  drawing.textBaseline = "top";
  drawing.fillText(text, 2, top);
};

// A round number not far above; what is larger sticks to the upper edge of a chart.
const roundUp = (value) => {
  const power = 10 ** Math.floor(Math.log10(value));
  for (const step of [1, 1.5, 2, 3, 4, 5, 6, 8, 10]) if (value <= step * power * 1.0001) return step * power;
  return value;
};

const drawStrip = (stage, strip, now) => {
  const samples = page.samples.filter((sample) => sample[stage] !== null && sample[stage] !== undefined);
  strip.figure.hidden = samples.length === 0;
  if (!samples.length) return;
  const sorted = ascending(samples.map((sample) => sample[stage]));
  strip.value.textContent =
    `p50 ${milliseconds(quantile(sorted, 0.5))} · p99 ${milliseconds(quantile(sorted, 0.99))}`;
  const target = context(strip.canvas);
  if (!target) return;
  const { drawing, width } = target;
  const most = roundUp(Math.max(0.001, quantile(sorted, 0.97) * 1.25));
  const x = (at) => width * (1 - (now - at) / WINDOW_S);
  const y = (ms) => 2 + (CHART_HEIGHT - 4) * (1 - Math.min(1, ms / most));
  grid(drawing, width, 2, `${short(most)} ms`);
  drawing.fillStyle = colour("--dot");
  drawing.globalAlpha = samples.length > 1500 ? 0.25 : 0.5;
  const size = samples.length > 600 ? 2 : 3;
  for (const sample of samples) drawing.fillRect(x(sample.at) - size / 2, y(sample[stage]) - size / 2, size, size);
  drawing.globalAlpha = 1;
  drawing.strokeStyle = colour("--median");
  drawing.lineWidth = 1.5;
  drawing.beginPath();
  let bin = [];
  let started = false;
  let previous = null;
  const flush = () => {
    if (!bin.length) return;
    const at = bin[Math.floor(bin.length / 2)].at;
    const ms = quantile(ascending(bin.map((sample) => sample[stage])), 0.5);
    // A pause of a few seconds is a gap, not a line.
    if (started && at - previous < 4) drawing.lineTo(x(at), y(ms));
    else drawing.moveTo(x(at), y(ms));
    started = true;
    previous = at;
    bin = [];
  };
  for (const sample of samples) {
    if (bin.length && Math.floor(sample.at) !== Math.floor(bin[0].at)) flush();
    bin.push(sample);
  }
  flush();
  drawing.stroke();
};

const drawStrips = (now) => {
  for (const stage of page.columns.slice(2)) {
    if (!page.strips.has(stage)) {
      const strip = chart(stage);
      page.strips.set(stage, strip);
      $("strips").append(strip.figure);
    }
    drawStrip(stage, page.strips.get(stage), now);
  }
};

const takeSamples = (data, now) => {
  page.columns = data.samples.columns;
  for (const row of data.samples.rows) {
    const sample = { at: now - row[0], robot: row[1] };
    page.columns.forEach((name, index) => { if (index > 1) sample[name] = row[index]; });
    page.samples.push(sample);
  }
  // A daemon that was started again counts from one.
  page.after = data.samples.last;
  const old = now - WINDOW_S;
  page.samples = page.samples.filter((sample) => sample.at > old);
};

const showState = (data) => {
  const pill = $("state");
  pill.textContent = data.state;
  const kind = { ready: "good", failed: "bad", draining: "bad" }[data.state] || "busy";
  pill.className = `pill ${kind}`;
  const policy = data.policy;
  const what = policy.checkpoint ? `${policy.family} · ${policy.checkpoint} · ${policy.environment}` : data.environment;
  $("summary").textContent = data.state === "ready" ? what : `${what} · ${data.explanation}`;
  document.title = `vlad · ${data.state}`;
};

const fidelityText = (fidelity) => {
  if (!fidelity) return null;
  if (fidelity.reference) return ["is the float32 reference", "good"];
  const figures = [];
  if (typeof fidelity.action_cosine === "number") figures.push(`action cosine ${fidelity.action_cosine}`);
  if (typeof fidelity.action_error_p99 === "number") figures.push(`error p99 ${fidelity.action_error_p99}`);
  const verdict = fidelity.passed ? "passed" : "NOT passed, served because the operator allowed it";
  return [[verdict, ...figures].join(" · "), fidelity.passed ? "good" : "bad"];
};

const showLoaded = (data) => {
  const policy = data.policy;
  const fidelity = fidelityText(policy.fidelity);
  const facts = [
    ["checkpoint", policy.checkpoint && `${policy.checkpoint}${policy.weights === "random" ? " (random weights)" : ""}`],
    ["policy", policy.family && `${policy.family}, ${policy.config || "no named configuration"}, ${policy.layout} layout`],
    ["environment", policy.environment || data.environment],
    ["backend", policy.backend],
    ["precision", policy.precision && `${policy.precision} on ${policy.device}`],
    ["fidelity", fidelity && fidelity[0], fidelity && fidelity[1]],
    ["chunk", policy.action_horizon && `${policy.action_horizon} actions of ${policy.action_dim}, ${policy.num_denoising_steps} denoising steps`],
    ["batches", policy.batch_sizes && policy.batch_sizes.length > 1 && policy.batch_sizes.join(", ")],
    ["default prompt", policy.default_prompt],
    ["workers", `${data.workers.ready} ready, ${data.workers.restarts} restarts, ${data.workers.hangs} hung`],
    ["daemon", `vlad ${data.version}, up ${seconds(data.up_s)}`],
  ];
  $("facts").replaceChildren(...facts.filter(([, value]) => value).flatMap(([name, value, kind]) =>
    [element("dt", name), element("dd", String(value), kind || "")]));
  const components = Object.entries(policy.components || {});
  $("components").hidden = components.length === 0;
  $("components").tBodies[0].replaceChildren(...components.map(([name, facts]) => {
    const row = element("tr");
    for (const value of [name, facts.engine, facts.version, facts.precision, facts.device]) {
      row.append(element("td", value === undefined || value === null ? "" : String(value)));
    }
    return row;
  }));
};

const robotsOf = (data) => data.connections.flatMap((connection) =>
  (connection.sessions.length ? connection.sessions : [connection.address]).map((name) =>
    ({ name, address: connection.address, requests: connection.requests, streams: connection.streams })));

const showRobots = (data, now) => {
  const robots = robotsOf(data);
  $("no-robots").hidden = robots.length > 0;
  $("robots").hidden = robots.length === 0;
  if (!page.chosen || !robots.some((robot) => robot.name === page.robot)) {
    const busy = robots.find((robot) => robot.name === page.robot) || robots.find((robot) => robot.requests) || robots[0];
    page.robot = busy ? busy.name : null;
    page.chosen = page.chosen && busy !== undefined && busy.name === page.robot;
  }
  $("robots").tBodies[0].replaceChildren(...robots.map((robot) => {
    const row = element("tr", undefined, robot.name === page.robot ? "chosen" : "");
    const own = page.samples.filter((sample) => sample.robot === robot.name);
    const recent = own.filter((sample) => sample.at > now - 5).length / 5;
    const totals = ascending(own.map((sample) => sample.total));
    const choose = element("button", robot.name);
    choose.type = "button";
    choose.setAttribute("aria-pressed", String(robot.name === page.robot));
    choose.addEventListener("click", () => { page.robot = robot.name; page.chosen = true; look(); });
    const name = element("td");
    name.append(choose);
    row.append(name, element("td", robot.name === robot.address ? (robot.streams ? "streams" : "") : robot.address));
    for (const value of [robot.requests, own.length ? recent.toFixed(1) : "",
      own.length ? milliseconds(quantile(totals, 0.5)) : "",
      own.length ? `${seconds(Math.max(0, now - own[own.length - 1].at))} ago` : ""]) {
      row.append(element("td", String(value), "number"));
    }
    return row;
  }));
  const good = new Set(["ok", "superseded", "reset", "cancelled"]);
  $("outcomes").replaceChildren(...Object.entries(data.requests).filter(([name, count]) => count || name === "ok")
    .map(([name, count]) => element("li", `${name} ${count}`, good.has(name) ? "" : "bad")));
};

const showFrames = (frames) => {
  const holder = $("frames");
  if (holder.children.length !== frames.length) {
    holder.replaceChildren(...frames.map(() => {
      const figure = element("figure");
      figure.append(element("img"), element("figcaption"));
      return figure;
    }));
  }
  frames.forEach((frame, index) => {
    const [image, caption] = holder.children[index].children;
    image.src = frame.url;
    image.width = frame.width;
    image.height = frame.height;
    image.alt = `what ${frame.camera} shows`;
    caption.textContent = frame.camera;
  });
};

const drawActions = (actions) => {
  const holder = $("actions");
  const width = actions.length ? actions[0].length : 0;
  if (holder.children.length !== width) {
    holder.charts = Array.from({ length: width }, (_, index) => chart(`action ${index}`));
    holder.replaceChildren(...holder.charts.map((one) => one.figure));
  }
  $("chunk-shape").textContent = `${actions.length} actions of ${width}, in the robot's units; the first one left`;
  for (let index = 0; index < width; index += 1) {
    const values = actions.map((action) => action[index]).map((value) => (value === null ? NaN : value));
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const one = holder.charts[index];
    one.value.textContent = `${short(least)} … ${short(most)}`;
    const target = context(one.canvas);
    if (!target) continue;
    const { drawing, width: wide } = target;
    // Noise of a joint that hardly moves is not blown up to the full height.
    const span = Math.max(most - least, 1e-3 * Math.max(Math.abs(most), Math.abs(least)), 1e-6);
    const middle = (most + least) / 2;
    const x = (step) => 4 + (wide - 8) * (values.length > 1 ? step / (values.length - 1) : 0.5);
    const y = (value) => CHART_HEIGHT / 2 - ((value - middle) / span) * (CHART_HEIGHT - 14);
    grid(drawing, wide, 2, "");
    drawing.strokeStyle = colour("--dot");
    drawing.fillStyle = colour("--dot");
    drawing.lineWidth = 1.5;
    drawing.beginPath();
    values.forEach((value, step) => (step ? drawing.lineTo(x(step), y(value)) : drawing.moveTo(x(0), y(value))));
    drawing.stroke();
    if (values.length <= 60) {
      values.forEach((value, step) => {
        drawing.beginPath(); drawing.arc(x(step), y(value), 2, 0, 7); drawing.fill();
      });
    }
  }
};

const showLook = (data) => {
  const seen = data.look;
  $("look").hidden = !seen;
  if (!seen) return;
  $("look-name").textContent = data.robot;
  $("look-age").textContent = seen.age_s < 2 ? "live" : `${seconds(seen.age_s)} ago`;
  $("prompt").textContent = seen.prompt;
  $("robot-state").textContent = Object.entries(seen.state)
    .map(([name, values]) => `${name} [${values.map((value) => (value === null ? "–" : short(value))).join(", ")}]`).join("  ");
  showFrames(seen.frames);
  drawActions(seen.actions);
};

const showRefusals = (data) => {
  $("refusals").hidden = data.refusals.length === 0;
  $("refusals").lastElementChild.replaceChildren(...data.refusals.slice().reverse().map((refusal) => {
    const item = element("li");
    item.append(element("b", refusal.code), ` ${refusal.robot}, ${seconds(refusal.age_s)} ago: ${refusal.text}`);
    return item;
  }));
};

const show = (data) => {
  const now = performance.now() / 1000;
  $("main").hidden = false;
  $("key-form").hidden = true;
  takeSamples(data, now);
  showState(data);
  showLoaded(data);
  showRobots(data, now);
  drawStrips(now);
  showLook(data);
  showRefusals(data);
  const skipped = data.samples.skipped ? `, ${data.samples.skipped} replies not drawn` : "";
  $("link").textContent = `live${skipped}`;
  document.body.dataset.shown = String(Number(document.body.dataset.shown || 0) + 1);
};

const askForKey = (wrong) => {
  $("main").hidden = true;
  $("key-form").hidden = false;
  $("state").textContent = "key needed";
  $("state").className = "pill busy";
  $("summary").textContent = "";
  $("link").textContent = wrong ? "that key does not fit" : "";
  $("key").focus();
};

let timer = 0;
let asking = false;
const look = async () => {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  let pause = POLL_MS;
  try {
    const query = new URLSearchParams({ after: String(page.after) });
    if (page.robot !== null) query.set("robot", page.robot);
    const headers = key ? { Authorization: `Api-Key ${key}` } : {};
    const answer = await fetch(`/status/data?${query}`, { headers, cache: "no-store", credentials: "omit" });
    if (answer.status === 401) {
      askForKey(key !== "");
      keepKey("");
      return; // until the form is sent
    }
    const data = await answer.json();
    if (!answer.ok) throw new Error(data.error);
    show(data);
  } catch (error) {
    pause = RETRY_MS;
    $("link").textContent = error instanceof TypeError ? "no answer from the daemon" : error.message;
    if (error instanceof TypeError) {
      $("state").textContent = "away";
      $("state").className = "pill bad";
    }
  } finally {
    asking = false;
  }
  timer = setTimeout(look, pause);
};

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey($("key").value.trim());
  $("key").value = "";
  look();
});
document.addEventListener("visibilitychange", look);
look();
