"""Screenshots and plots of the documentation: ``python -m docs.make_pictures``."""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import Select

from tests.apps.serving import serving
from tests.support.browser import chromium, eventually, look

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run the demo with DoLa off and on, compare, and take screenshots of the results."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        demo = ("predict", "--config", "configs/demo.yaml", "--writer.output_dir")
        _main_py(*demo, folder / "baseline", "--model.dola=false")
        _main_py(*demo, folder / "dola", "--model.inspect=[[4, 2]]")
        _main_py("compare", folder / "baseline", folder / "dola", "--output", folder / "page")
        (plot,) = folder.glob("dola/*/*.inspect.png")
        shutil.copyfile(plot, ROOT / "docs/inspection.png")
        with chromium(folder) as page:
            look(page, 1100, height=800)
            page.get((folder / "page/index.html").as_uri())
            Select(page.find_element(By.ID, "view")).select_by_value("slider")
            page.find_element(By.ID, "search").send_keys("two blue")
            page.save_screenshot(str(ROOT / "docs/compare.png"))
        with serving(folder, task="play", ready="/") as playground, chromium(folder) as page:
            _show_playground(page, playground.address)
            page.save_screenshot(str(ROOT / "docs/playground.png"))


def _show_playground(page: WebDriver, address: str) -> None:
    """Draw, and click on an image that DoLa has changed."""
    look(page, 1100, height=1010)
    page.get(address)
    (prompt,) = eventually(
        page, lambda page: page.find_elements(By.CSS_SELECTOR, "#prompt textarea")
    )
    prompt.send_keys("a green triangle left of a blue circle", Keys.TAB)
    page.find_element(By.ID, "draw").click()
    eventually(page, lambda page: page.find_elements(By.CSS_SELECTOR, "#past label"))
    page.find_elements(By.CSS_SELECTOR, "#with-dola img")[1].click()
    page.find_elements(By.CSS_SELECTOR, "#measure label")[1].click()
    eventually(page, lambda page: page.find_elements(By.CSS_SELECTOR, "#map img"))
    eventually(page, lambda page: "divergence" in page.find_element(By.ID, "told").text)


def _main_py(*args: object) -> None:
    subprocess.run([sys.executable, "main.py", *map(str, args)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
