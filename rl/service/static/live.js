// Live refresh: every two seconds it fetches the fragment that the page names and replaces the sections that changed.
// It rests while nobody looks.

const PERIOD = 2000;
const GIVE_UP = 10000;
const address = document.body.dataset.live;
const note = document.getElementById("live");

async function refresh() {
  const answer = await fetch(address, { signal: AbortSignal.timeout(GIVE_UP) });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const section of fresh.querySelectorAll("[data-part]")) {
    const shown = document.querySelector(`[data-part="${section.dataset.part}"]`);
    if (shown && shown.innerHTML !== section.innerHTML) shown.replaceWith(document.adoptNode(section));
  }
}

async function loop() {
  for (;;) {
    await new Promise((wake) => setTimeout(wake, PERIOD));
    if (document.hidden) {
      await new Promise((seen) => document.addEventListener("visibilitychange", seen, { once: true }));
    }
    try {
      await refresh();
      note.textContent = "live";
    } catch {
      note.textContent = `no answer since ${new Date().toLocaleTimeString()}`;
    }
  }
}

if (address) loop();
