() => {
  // Listeners are on the document: a new run puts new elements in place of the old ones.
  const show = (stage, index) => {
    const frames = stage.querySelectorAll(".frames img");
    // The next run may have put fewer here while the last one was playing.
    if (index >= frames.length) return;
    frames.forEach((frame, i) => { frame.hidden = i !== index; });
    const steps = stage.querySelector("output").textContent.split(" of ")[1];
    stage.querySelector("output").textContent = `step ${frames[index].dataset.step} of ${steps}`;
    stage.querySelector("input.frame").value = index;
  };

  const MILLISECONDS = 1500;
  const play = (stage) => {
    const last = stage.querySelectorAll(".frames img").length - 1;
    const began = performance.now();
    const ticket = {};
    stage.ticket = ticket;
    const tick = (now) => {
      if (stage.ticket !== ticket || !stage.isConnected) return;
      const passed = Math.min(1, Math.max(0, now - began) / MILLISECONDS);
      show(stage, Math.round(passed * last));
      if (passed < 1) requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  };

  document.addEventListener("input", (event) => {
    if (!event.target.matches(".stage input.frame")) return;
    const stage = event.target.closest(".stage");
    stage.ticket = null;
    show(stage, Number(event.target.value));
  });
  document.addEventListener("click", (event) => {
    if (event.target.matches(".stage .play")) play(event.target.closest(".stage"));
  });
  // The page's sliders tell when a pointer lets them go, and nothing of keys.
  document.addEventListener("keyup", (event) => {
    const moves = ["Arrow", "Page", "Home", "End"].some((name) => event.key.startsWith(name));
    const kind = moves ? "range" : event.key === "Enter" ? "number" : "none";
    if (event.target.matches(`#controls input[type=${kind}]`)) document.querySelector("#sample").click();
  });
  window.exptiltPlay = () => {
    const stage = document.querySelector(".stage[data-done]");
    const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (stage?.querySelector("input.frame") && !still) play(stage);
  };
}
