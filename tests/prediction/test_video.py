from fractions import Fraction
from pathlib import Path

import pytest
import torch
from colour_detector import Colours

from ranksort.data.coco_columns import Category
from ranksort.prediction import Predictor
from ranksort.prediction.folder import PredictionFolder
from ranksort.prediction.video import Video, VideoWriter

av = pytest.importorskip("av", reason="PyAV is not installed")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Six frames of 40 x 30 px, the second half a second later than its number says; grey of 20, 40, ..."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 40, 30, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for n, time in enumerate((0, 6, 7, 8, 9, 10)):
            frame = av.VideoFrame.from_ndarray(torch.full((30, 40, 3), 20 * n + 20, dtype=torch.uint8).numpy(), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_frames_have_number_and_time(clip: Path) -> None:
    with Video(clip) as video:
        frames = list(video.frames(every=2))
    assert [(f.number, f.seconds) for f, _ in frames] == [(0, 0.0), (2, 0.7), (4, 0.9)]
    assert [image.shape for _, image in frames] == [(3, 30, 40)] * 3
    assert [float(image.float().mean()) for _, image in frames] == pytest.approx([20, 60, 100], abs=3)
    assert str(frames[1][0]) == f"{clip}#frame=2&t=0.700"


def test_annotated_videos_have_the_times_of_their_frames(clip: Path, colours: Colours, tmp_path: Path) -> None:
    categories = [Category(n, str(n)) for n in range(3)]
    folder = PredictionFolder(tmp_path / "out", Predictor(colours), categories, every=2)
    folder.predict([clip, tmp_path / "missing.mp4"])
    assert folder.images == 3
    (failure,) = folder.failures
    assert f"The video {tmp_path / 'missing.mp4'} cannot be read (No such file or directory)." == failure
    with av.open(str(tmp_path / "out" / "00000_clip.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([0, 0.7, 0.9])


def test_damaged_videos(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"The video .*cut\.mp4 cannot be read \("):
        Video(tmp_path / "cut.mp4")


@pytest.mark.parametrize("batch_size", [1, 8])
def test_frames_before_a_damaged_one_are_kept(clip: Path, colours: Colours, tmp_path: Path, batch_size: int) -> None:
    with av.open(str(clip)) as container:
        damaged = [*container.demux(video=0)][4]
    content = bytearray(clip.read_bytes())
    content[damaged.pos : damaged.pos + damaged.size] = bytes(damaged.size)
    clip.write_bytes(content)
    folder = PredictionFolder(
        tmp_path / "out", Predictor(colours, batch_size=batch_size), [Category(n, str(n)) for n in range(3)]
    )
    folder.predict([clip])
    assert folder.images == 4
    reason = f"The video {clip} cannot be read from frame 4 on (Invalid data found when processing input)."
    assert folder.failures == [f"{reason} The detections in the 4 frames before it are kept."]
    with av.open(str(tmp_path / "out" / "00000_clip.mp4")) as container:
        assert len([*container.decode(video=0)]) == 4


def restamped(clip: Path, path: Path, timestamps: list[int]) -> Path:
    """The frames of a clip at other times, in milliseconds."""
    with av.open(str(clip)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet, time in zip(source.demux(video=0), timestamps, strict=False):
            packet.pts = packet.dts = time
            packet.time_base, packet.stream = Fraction(1, 1000), stream
            container.mux(packet)
    return path


def test_frames_at_the_same_time_are_all_kept(clip: Path, colours: Colours, tmp_path: Path) -> None:
    fast = restamped(clip, tmp_path / "fast.mkv", [0, 0, 1, 1, 2, 2])  # 2,000 frames per second
    folder = PredictionFolder(tmp_path / "out", Predictor(colours), [Category(n, str(n)) for n in range(3)])
    folder.predict([fast])
    assert (folder.images, folder.failures) == (6, [])
    with av.open(str(tmp_path / "out" / "00000_fast.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([0, 0.001, 0.002, 0.003, 0.004, 0.005], abs=1e-4)


def test_what_mp4_cannot_hold_is_said(clip: Path, colours: Colours, tmp_path: Path) -> None:
    gap = restamped(clip, tmp_path / "gap.mkv", [0, 1, 2, 10**9, 10**9 + 1, 10**9 + 2])  # eleven days
    folder = PredictionFolder(tmp_path / "out", Predictor(colours), [Category(n, str(n)) for n in range(3)])
    folder.predict([gap])
    (failure,) = folder.failures
    assert failure.startswith(f"The video {tmp_path / 'out' / '00000_gap.mp4'} cannot be written (")
    with Video(clip) as video, VideoWriter(tmp_path / "thin.mp4", video, 1) as writer:
        frame, image = next(video.frames())
        with pytest.raises(ValueError, match="two pixels or more per side"):
            writer.add(image[:, :1], frame)


def test_times_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mpg"  # MPEG program streams start at about half a second
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 40, 30, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(40, 30, "yuv420p")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.start_time > 0
    with Video(path) as video:
        assert [frame.seconds for frame, _ in video.frames()] == pytest.approx([0, 0.04, 0.08])
