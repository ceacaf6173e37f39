"""Looks at the built site, and moves the sliders of the explorer, in a headless Chromium.

python tools/look_at_pages.py build/site                     what is wrong, a line each
python tools/look_at_pages.py build/site --pictures DIR      and a picture of every page, of both themes and widths

Needs Chromium with its driver, selenium and JupyterLab. Without a Chromium it says so, and checks nothing.
"""

import argparse
import base64
import contextlib
import pathlib
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).parents[1]
THEMES, WIDTHS = ("light", "dark"), (1280, 400)
SETTLED_SECONDS = 30.0
"""How long after a slider's last value its picture may be another one's, on a machine that has other work."""
RUN_ALL = """
const done = arguments[0];
jupyterapp.commands.execute('notebook:run-all-cells').then(() => done(null), (error) => done(String(error)));
"""

FORMULAS_ARE_SET = "return !document.querySelector('.math:not(:has(mjx-container))')"
PROBLEMS = """
const found = [], page = document.documentElement;
if (page.scrollWidth > innerWidth) found.push(`the page is ${page.scrollWidth} wide`);
const scrolls = (of) => ["auto", "scroll", "hidden"].includes(getComputedStyle(of).overflowX);
for (const element of document.querySelectorAll(".content *")) {
  const box = element.getBoundingClientRect();
  if (!box.width || box.right <= innerWidth + 1 || element.closest("mjx-assistive-mml")) continue;
  let around = element.parentElement;
  while (around && !around.classList.contains("content") && !scrolls(around)) around = around.parentElement;
  if (!around || around.classList.contains("content")) {
    found.push(`<${element.localName} class="${element.className}"> is cut off`);
    break;
  }
}
for (const image of document.images) if (image.complete && !image.naturalWidth) found.push(`${image.src} is broken`);
const lightness = (color) => color.match(/[\\d.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765;
const dark = lightness(getComputedStyle(document.body).backgroundColor) < 0.5;
if (dark !== arguments[0]) found.push("the background is not the theme's");
if (dark)
  for (const image of document.querySelectorAll(".content img"))
    if (image.getBoundingClientRect().width && !image.classList.contains("only-dark")
        && !getComputedStyle(image).filter.includes("invert"))
      found.push(`${image.src.slice(0, 80)} is a light picture on a dark page`);
return found;
"""


@contextlib.contextmanager
def browser() -> Iterator:
    """A headless Chromium, driven by selenium."""
    from selenium import webdriver  # pyright: ignore[reportMissingImports]

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or ""
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def wait(until: Callable, seconds: float, what: str):
    """What `until` returns once that is true."""
    end = time.monotonic() + seconds
    while not (found := until()):
        if time.monotonic() > end:
            raise TimeoutError(f"after {seconds:g} s there is still no {what}")
        time.sleep(0.1)
    return found


def problems_of_pages(driver, site: pathlib.Path, pictures: pathlib.Path | None) -> Iterator[str]:
    """A line for everything that is cut off, broken, or of the other theme."""
    for theme in THEMES:
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for width in WIDTHS:
            screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            for page in sorted(site.rglob("*.html")):
                name = page.relative_to(site).with_suffix("")
                driver.get(page.resolve().as_uri())
                wait(lambda: driver.execute_script(FORMULAS_ARE_SET), 20, f"formula of {name} that is set")
                for problem in driver.execute_script(PROBLEMS, theme == "dark"):
                    yield f"{name}, {theme}, {width} wide: {problem}"
                if pictures:
                    _picture(driver, pictures / f"{str(name).replace('/', '_')}_{theme}_{width}.png")
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def _picture(driver, path: pathlib.Path) -> None:
    width, height = driver.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, 15000), "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def jupyter(folder: pathlib.Path) -> Iterator[str]:
    """JupyterLab, of the Python that runs this, in a folder; and its address."""
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser", "--allow-root"]
    token = secrets.token_hex()
    command += [f"--IdentityProvider.token={token}", "--ServerApp.port_retries=50"]
    log = folder / "log"
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
    try:
        pattern = re.compile(r"http://(?:127\.0\.0\.1|localhost):\d+/lab")

        def address() -> re.Match | None:
            if process.poll() is not None:
                raise RuntimeError(f"JupyterLab ended: {log.read_text()}")
            return pattern.search(log.read_text())

        yield f"{wait(address, 60, 'address of JupyterLab')[0]}/tree/{{}}?token={token}"
    finally:
        process.terminate()
        process.wait()


def problems_of_the_explorer(driver, pictures: pathlib.Path | None) -> Iterator[str]:
    """Runs it in JupyterLab, moves sliders faster than figures can be drawn, and sees what becomes of the pictures."""
    from selenium.webdriver.common.keys import Keys  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        for path in (ROOT / "notebooks").glob("[!.]*"):
            if path.is_file():
                shutil.copy(path, folder)
        with jupyter(pathlib.Path(folder)) as address:
            driver.get(address.format("04_explore.ipynb"))
            there = "return !!(window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell'))"
            wait(lambda: driver.execute_script(there), 60, "notebook")
            idle = "return jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.status"
            wait(lambda: driver.execute_script(idle) == "idle", 60, "kernel")
            driver.set_script_timeout(180)
            if failed := driver.execute_async_script(RUN_ALL):
                yield f"explorer: {failed}"
            boxes = wait(lambda: _boxes(driver, 3), 30, "three pictures with sliders")
            for number, box in enumerate(boxes):
                yield from _problems_of_box(driver, number, box, Keys.ARROW_RIGHT)
                if pictures:
                    driver.save_screenshot(str(pictures / f"explorer_{number}.png"))


def _boxes(driver, count: int) -> list:
    """The widgets of a picture with its sliders, once all of them are there."""
    found = driver.find_elements("css selector", ".jp-OutputArea-output > .widget-vbox:has(img[alt])")
    return found if len(found) >= count else []


def _problems_of_box(driver, number: int, box, key: str) -> Iterator[str]:
    name = f"explorer, picture {number + 1}"
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
    slider = box.find_element("css selector", ".widget-slider")
    for label in box.find_elements("css selector", ".widget-label, .widget-label-basic span"):
        if driver.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth + 1", label):
            yield f"{name}: the label {label.text!r} is cut off"
    if (width := slider.size["width"]) < 300:
        yield f"{name}: its slider is {width} wide"

    def alt() -> str:
        return driver.execute_script("return arguments[0].querySelector('img').alt", box)

    if len(alt()) < 60:
        yield f"{name}: no description"
    driver.execute_script(
        """window.drawn = 0;
        new MutationObserver(() => window.drawn++).observe(arguments[0], {subtree: true, childList: true});""",
        box.find_element("css selector", ".widget-html-content"),
    )
    moves = 40
    slider.find_element("css selector", ".noUi-handle").send_keys(key * moves)
    value = box.find_element("css selector", ".widget-readout").text.replace("\N{MINUS SIGN}", "-")
    shown = re.compile(rf"(?<![\d.-]){re.escape(value)}(?!\d)")
    with contextlib.suppress(TimeoutError):
        wait(lambda: driver.execute_script("return window.drawn") and shown.search(alt()), SETTLED_SECONDS, "picture")
    time.sleep(1)  # for what would come after it
    if not shown.search(alt()):
        yield f"{name}: its slider stopped at {value}, and it shows: {alt()}"
    drawn = driver.execute_script("return window.drawn")
    if not 0 < drawn <= moves // 2:  # more would have queued up
        yield f"{name}: drawn {drawn} times for {moves} values of its slider"
    print(f"{name}: slider {width} wide, {moves} values, drawn {drawn} times, the last at {value}")


def main() -> None:
    """Prints what is wrong; exit status 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=pathlib.Path)
    parser.add_argument("--only", choices=["pages", "explorer"], help="one of the two")
    parser.add_argument("--pictures", type=pathlib.Path, help="a folder for a picture of every page")
    arguments = parser.parse_args()
    missing = [program for program in ("chromium", "chromedriver") if not shutil.which(program)]
    if missing:
        print(f"skipped: no {' and no '.join(missing)} (Debian: apt-get install chromium chromium-driver)")
        return
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    with browser() as driver:
        found, well = [], []
        if arguments.only != "explorer":
            found += problems_of_pages(driver, arguments.site, arguments.pictures)
            well.append("pages: nothing is cut off, broken or of the other theme")
        if arguments.only != "pages":
            found += problems_of_the_explorer(driver, arguments.pictures)
            well.append("explorer: its pictures follow their sliders, and the last value wins")
    print("\n".join(found or well))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
