// Keeps a page as it is now: fetches the fragment that the page names, when the run's events say that something has
// changed or, on a page without events, every two seconds; and replaces the sections that differ. Rests while nobody looks.

const PERIOD = 2000;
const GIVE_UP = 10000;
const { live: address, events } = document.body.dataset;
const note = document.getElementById("live");
let changed = true;

async function refresh() {
  const answer = await fetch(address, { signal: AbortSignal.timeout(GIVE_UP) });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const section of fresh.querySelectorAll("[data-part]")) {
    const shown = document.querySelector(`[data-part="${section.dataset.part}"]`);
    if (shown && !shown.contains(document.activeElement) && shown.innerHTML !== section.innerHTML) {
      shown.replaceWith(document.adoptNode(section));
    }
  }
  document.dispatchEvent(new Event("refreshed"));
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
      changed = true;
      note.textContent = `no answer since ${new Date().toLocaleTimeString()}`;
    }
  }
}

// As `rl.pages.ago` has it.
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
    note.textContent = `no answer since ${new Date().toLocaleTimeString()}`;
  });
}

if (address) loop();
if (address && events) listen();
