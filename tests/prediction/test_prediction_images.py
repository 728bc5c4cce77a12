from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ranksort.prediction.images import find_images, load_image, read_ahead


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_folders_in_depth(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.PNG", "note.md", "deep/c.png", "deep/er/d.webp", "out/old.jpg", "clip.mp4")
    touch(tmp_path, "._b.jpg", ".thumbnails/e.jpg", "earlier/f.jpg", "earlier/results_bbox.json")
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    files, passed_over = find_images([tmp_path], tmp_path / "out")
    assert [path.name for path in files] == ["a.PNG", "b.jpg", "clip.mp4", "c.png", "d.webp"]
    assert "2 files (hidden, or not an image by name)" in passed_over
    assert "2 folders (hidden, or links)" in passed_over
    assert "1 folder of results" in passed_over
    assert find_images([tmp_path / "deep", tmp_path / "note.md"])[0][-1] == tmp_path / "note.md"


def test_lists_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "here.jpg", "lists/beside.jpg", "lists/b/2.jpg", "lists/b/1.jpg", "odd[1].jpg")
    monkeypatch.chdir(tmp_path)
    Path("lists/some.txt").write_text("\ufeffhere.jpg\n\n# a comment\nbeside.jpg\nmissing.jpg\n", encoding="utf-8")
    files, _ = find_images(["lists/some.txt"])
    assert files == [Path("here.jpg"), Path("lists/beside.jpg"), Path("lists/missing.jpg")]
    assert find_images(["lists/**/*.jpg"])[0] == [Path(f"lists/{name}.jpg") for name in ("b/1", "b/2", "beside")]
    assert find_images(["odd[1].jpg"])[0] == [Path("odd[1].jpg")]
    with pytest.raises(ValueError, match=r"no file matches x/\*\.jpg"):
        find_images(["x/*.jpg"])
    Path("empty.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"empty\.txt lists no images"):
        find_images(["empty.txt"])
    Path("image.txt").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"image\.txt is not a list of images"):
        find_images(["image.txt"])


def test_all_kinds_of_images_are_the_same(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    alpha = np.concatenate([pixels, pixels[..., :1]], axis=2)
    sources = [str(tmp_path / "a.png"), tmp_path / "a.png", picture, pixels, alpha, tensor, tensor / 255]
    assert all(torch.equal(load_image(source), tensor) for source in sources)
    assert torch.equal(load_image(pixels[::-1, :, ::-1]), tensor.flip(1).flip(0))  # OpenCV's order, upside down
    assert torch.equal(load_image(pixels[..., 0]), tensor[:1].expand(3, -1, -1))


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_what_happens_to_the_source_later_does_not_matter(kind: str) -> None:
    pixels = torch.zeros(3, 8, 9, dtype=torch.uint8)
    image = load_image(pixels if kind == "tensor" else pixels.permute(1, 2, 0).numpy())
    pixels.fill_(255)  # as the next frame of a camera, in the same memory
    assert not image.any()


def test_photos_are_turned_as_people_see_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    picture = Image.new("RGB", (20, 10), "black")
    picture.paste("white", (0, 0, 10, 10))
    picture.save(tmp_path / "a.png", exif=exif)
    for source in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        image = load_image(source)
        assert image.shape == (3, 20, 10)
        assert image[:, :10].float().mean() == 255
        assert image[:, 10:].float().mean() == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3)), r"an array must be uint8, \[H, W, 3\] RGB or \[H, W\] grey, got float64"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"got uint8 of shape \(2, 4, 4, 3\)"),
        (torch.zeros(4, 4, 3), r"a tensor must be RGB of shape \[3, H, W\], got \(4, 4, 3\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), r"a tensor must be uint8 or float in 0\.\.1, got torch.int64"),
        (7, "an object of type int is not an image"),
    ],
)
def test_what_is_no_image(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_image(source)


def test_images_are_read_ahead_in_their_order() -> None:
    read: list[int] = []

    def load(n: int) -> torch.Tensor:
        read.append(n)
        if n == 5:
            raise ValueError("five")
        return torch.full((3, 1, 1), n)

    given = read_ahead(range(20), load, ahead=3)
    assert next(given)[0] == 0
    assert max(read) <= 3  # those in memory are few
    rest = list(given)
    assert [n for n, _ in rest] == list(range(1, 20))
    assert all(isinstance(x, ValueError) if n == 5 else int(x[0]) == n for n, x in rest)
