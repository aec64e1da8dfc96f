// Keeps a page as it is now: fetches the fragment that the page names, when the run's events say that something has
// changed or, on a page without events, every two seconds; and replaces the sections that differ. Rests while nobody looks.

const PERIOD = 2000;
const GIVE_UP = 10000;
const { live: address, events } = document.body.dataset;
const note = document.getElementById("live");
const parts = document.getElementById("parts");
let changed = true;

async function refresh() {
  const answer = await fetch(address, { signal: AbortSignal.timeout(GIVE_UP) });
  if (!answer.ok || answer.redirected) throw new Error(`status ${answer.status}`); // to the login, say
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").body;
  if (names(fresh) !== names(parts)) {
    if (keptOpen(parts, fresh)) parts.replaceChildren(...document.adoptNode(fresh).childNodes);
  } else {
    for (const section of fresh.querySelectorAll("[data-part]")) {
      const shown = parts.querySelector(`[data-part="${section.dataset.part}"]`);
      if (keptOpen(shown, section) && shown.innerHTML !== section.innerHTML) {
        shown.replaceWith(document.adoptNode(section));
      }
    }
  }
  document.dispatchEvent(new Event("refreshed"));
}

function names(root) {
  return Array.from(root.querySelectorAll("[data-part]"), (one) => one.dataset.part).join();
}

// False where somebody is at work in `shown`: it is left alone, and looked at again. What is open there stays so.
function keptOpen(shown, fresh) {
  if (shown.contains(document.activeElement)) {
    changed = true;
    return false;
  }
  const before = shown.querySelectorAll("details");
  fresh.querySelectorAll("details").forEach((one, place) => {
    one.toggleAttribute("open", before[place]?.open ?? one.open);
  });
  return true;
}

function unanswered() {
  changed = true;
  note.textContent = `no answer since ${new Date().toLocaleTimeString()}`;
}

async function loop() {
  for (;;) {
    await new Promise((wake) => setTimeout(wake, PERIOD));
    if (document.hidden) {
      await new Promise((seen) => document.addEventListener("visibilitychange", seen, { once: true }));
    }
    ages();
    if (events && !changed) continue;
    changed = false;
    try {
      await refresh();
      note.textContent = "live";
    } catch {
      unanswered();
    }
  }
}

// As `rl.reports.pages.ago` has it.
function ago(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 2 * size) return `${Math.round(seconds / size)} ${unit}`;
  }
  return `${Math.round(Math.max(seconds, 0))} s`;
}

function ages() {
  for (const one of document.querySelectorAll("time[data-at]")) {
    one.textContent = `${ago(Date.now() / 1000 - Number(one.dataset.at))} ago`;
  }
}

function listen() {
  const source = new EventSource(events);
  for (const name of ["state", "pulse", "step", "fault", "change"]) {
    source.addEventListener(name, () => {
      changed = true;
    });
  }
  source.addEventListener("error", () => {
    unanswered();
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, GIVE_UP); // refused: a browser asks no more
  });
}

if (address) loop();
if (address && events) listen();
