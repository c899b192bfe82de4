"""Screenshots and plots of the documentation: ``python -m docs.make_pictures``."""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from tests.support.browser import chromium, look

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


def _main_py(*args: object) -> None:
    subprocess.run([sys.executable, "main.py", *map(str, args)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
