//! `intern data video`: metadata, frames and subtitles of videos, through an installed ffmpeg.
//!
//! A video becomes an interleaved document: its frames in order, and before each what the subtitles
//! beside the file say until then. A shard is written under a temporary name until it is whole, so a
//! killed run goes on with the next shard.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use intern_format::atomic::{AtomicFile, read_json, write_json};
use intern_format::provenance;
use intern_progress::Progress;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::images::sample::{Image, Part, Sample};
use crate::images::{Drop, append};
use crate::job::Job;
use crate::source::Paths;
use crate::source::files::{self, FileRef};

const COMMAND: &str = "data video";
const ENDINGS: [&str; 9] = [".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".flv"];

/// Configuration of `intern data video`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VideoConfig {
    /// A video, a directory, or a pattern with `*`, `?` and `**`; also a list of them.
    pub path: Paths,
    /// Which frames are taken.
    pub frames: Frames,
    /// Change that makes a new scene, 0 to 1, with `frames = "scene"`.
    pub scene_change: f64,
    /// Seconds between frames, with `frames = "every"`.
    pub seconds: f64,
    /// Most frames of a video, spread over those found; 0 takes all.
    pub max_frames: usize,
    /// Longer side of a frame, pixels; smaller videos stay as they are. 0 changes nothing.
    pub side: u32,
    /// Shortest video.
    pub min_seconds: f64,
    /// Longest video; 0 for any length.
    pub max_seconds: f64,
    /// Smallest shorter side of a video, pixels.
    pub min_side: u32,
    /// Videos of a shard.
    pub shard_videos: usize,
    /// The program `ffmpeg`; `ffprobe` lies beside it.
    pub ffmpeg: PathBuf,
}

impl Default for VideoConfig {
    fn default() -> Self {
        Self {
            path: Paths::default(),
            frames: Frames::Key,
            scene_change: 0.3,
            seconds: 10.0,
            max_frames: 64,
            side: 512,
            min_seconds: 0.0,
            max_seconds: 0.0,
            min_side: 0,
            shard_videos: 100,
            ffmpeg: "ffmpeg".into(),
        }
    }
}

/// Which frames of a video are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Frames {
    /// Those coded by themselves; only they are decoded.
    Key,
    /// The first and those that change much.
    Scene,
    /// One each so many seconds.
    Every,
}

/// What became of the videos.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Videos read.
    pub videos: u64,
    /// Their length together.
    pub seconds: f64,
    /// Videos kept.
    pub kept: u64,
    /// Their frames.
    pub frames: u64,
    /// Rule → videos it dropped.
    pub dropped: BTreeMap<String, u64>,
    /// Shards written.
    pub shards: u64,
    /// Nothing had to be done.
    #[serde(default)]
    pub up_to_date: bool,
}

/// What became of the videos of a shard.
#[derive(Default, Serialize, Deserialize)]
struct ShardRecord {
    seconds: f64,
    frames: u64,
    kept: u64,
    dropped: Vec<(String, Drop)>,
}

/// What ffprobe says of a video.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// Length, seconds.
    pub duration: f64,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Frames per second on average.
    pub fps: f64,
    /// Codec of the pictures.
    pub video_codec: String,
    /// Codec of the sound, if there is any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audio_codec: Option<String>,
    /// `title` of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Size of the file.
    pub bytes: u64,
}

/// Takes videos apart into the directory `out`; goes on there if an earlier run was interrupted.
///
/// # Errors
/// If ffmpeg is not installed, the configuration makes no sense, there are no videos or the disk refuses.
pub fn run(config: &VideoConfig, out: &Path) -> Result<Summary> {
    ensure!(config.shard_videos > 0, "shard_videos = 0: a shard holds at least one video");
    ensure!(config.seconds > 0.0, "seconds = {}: must be more than 0", config.seconds);
    ensure!(!config.path.as_slice().is_empty(), "no path given\nhint: set path = \"videos\"");
    let ffmpeg = Ffmpeg::find(&config.ffmpeg)?;
    let mut videos = Vec::new();
    for path in config.path.as_slice() {
        videos.append(&mut files::list(path, &ENDINGS)?);
    }
    let read =
        videos.iter().map(|v| v.path.clone()).chain(videos.iter().filter_map(|v| subtitle_file(&v.path)));
    let read: Vec<PathBuf> = read.collect();
    let hashes = read.into_par_iter().map(|p| Ok((p.display().to_string(), provenance::hash_path(&p)?)));
    let job = Job::new(out, COMMAND, config, hashes.collect::<Result<_>>()?)?;
    if let Some(counts) = job.finished()? {
        let summary: Summary = serde_json::from_value(json!(counts)).context("reading the record")?;
        return Ok(Summary { up_to_date: true, ..summary });
    }
    let work = job.prepare(&["shards", "dropped.jsonl"])?.to_path_buf();
    let mut summary = Summary { videos: videos.len() as u64, ..Summary::default() };
    let mut dropped = AtomicFile::create(&out.join("dropped.jsonl"))?;
    let progress = Progress::new("video", summary.videos, "videos");
    for (number, chunk) in videos.chunks(config.shard_videos).enumerate() {
        let marker = work.join(format!("{number:06}.json"));
        let record: ShardRecord = if marker.is_file() {
            read_json(&marker)?
        } else {
            let path = out.join("shards").join(format!("{number:06}.tar"));
            let record = write_shard(config, &ffmpeg, chunk, number * config.shard_videos, &path, &progress)?;
            write_json(&marker, &record)?;
            record
        };
        summary.seconds += record.seconds;
        summary.frames += record.frames;
        summary.kept += record.kept;
        summary.shards += u64::from(record.kept > 0);
        for (id, drop) in record.dropped {
            writeln!(dropped, "{}", json!({"id": id, "rule": drop.rule, "why": drop.why}))?;
            *summary.dropped.entry(drop.rule).or_default() += 1;
        }
    }
    progress.finish();
    dropped.commit()?;
    job.finish(&["shards", "dropped.jsonl"], &summary)?;
    Ok(summary)
}

fn write_shard(
    config: &VideoConfig,
    ffmpeg: &Ffmpeg,
    videos: &[FileRef],
    first: usize,
    path: &Path,
    progress: &Progress,
) -> Result<ShardRecord> {
    let mut record = ShardRecord::default();
    let mut tar = None;
    let mut number = first;
    // A few at a time: their frames are held in memory.
    for some in videos.chunks(rayon::current_num_threads().max(1)) {
        let done: Vec<_> = some
            .par_iter()
            .map(|video| {
                let done = ffmpeg.sample(config, video);
                progress.inc(1);
                done
            })
            .collect::<Result<_>>()?;
        for (seconds, sample) in done {
            record.seconds += seconds;
            match sample {
                Err((id, drop)) => record.dropped.push((id, drop)),
                Ok(sample) => {
                    record.kept += 1;
                    record.frames += sample.images.len() as u64;
                    let tar = match &mut tar {
                        Some(tar) => tar,
                        none => none.insert(tar::Builder::new(AtomicFile::create(path)?)),
                    };
                    for (ending, bytes) in sample.members(&Map::new()) {
                        append(tar, &format!("{number:09}.{ending}"), &bytes)?;
                    }
                }
            }
            number += 1;
        }
    }
    if let Some(tar) = tar {
        tar.into_inner()?.commit()?;
    }
    Ok(record)
}

/// The programs.
struct Ffmpeg {
    ffmpeg: PathBuf,
    ffprobe: PathBuf,
}

/// The second it is shown at, and its JPEG file.
type Frame = (f64, Vec<u8>);

/// A video's length, and its sample or why there is none.
type Taken = (f64, Result<Sample, (String, Drop)>);

impl Ffmpeg {
    fn find(ffmpeg: &Path) -> Result<Self> {
        let ffprobe = ffmpeg.with_file_name("ffprobe");
        for program in [ffmpeg, &ffprobe] {
            let ran =
                Command::new(program).arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            if !ran.is_ok_and(|status| status.success()) {
                bail!(
                    "{} cannot be run\nhint: videos are read by ffmpeg; install it (apt install ffmpeg, brew \
                     install ffmpeg), or set ffmpeg = \"/path/to/ffmpeg\" with ffprobe beside it",
                    program.display()
                );
            }
        }
        Ok(Self { ffmpeg: ffmpeg.into(), ffprobe })
    }

    fn sample(&self, config: &VideoConfig, video: &FileRef) -> Result<Taken> {
        let id = video.name.clone();
        let drop = |rule: &str, why: String| Err((id.clone(), Drop { rule: rule.into(), why }));
        let meta = match self.probe(&video.path) {
            Ok(meta) => meta,
            Err(e) => return Ok((0.0, drop("broken", e.to_string()))),
        };
        let seconds = meta.duration;
        let limit = |bound: &str, limit: f64| format!("{seconds:.1} seconds, {bound} {limit}");
        let short = meta.width.min(meta.height);
        if seconds < config.min_seconds {
            return Ok((seconds, drop("min_seconds", limit("at least", config.min_seconds))));
        }
        if config.max_seconds > 0.0 && seconds > config.max_seconds {
            return Ok((seconds, drop("max_seconds", limit("at most", config.max_seconds))));
        }
        if short < config.min_side {
            let why = format!("{} x {} pixels, at least {} a side", meta.width, meta.height, config.min_side);
            return Ok((seconds, drop("min_side", why)));
        }
        let frames = match self.frames(config, &video.path)? {
            Ok(frames) if frames.is_empty() => {
                return Ok((seconds, drop("no_frames", "no frame was decoded".into())));
            }
            Ok(frames) => spread(frames, config.max_frames),
            Err(why) => return Ok((seconds, drop("broken", why))),
        };
        let spoken = match subtitle_file(&video.path) {
            Some(path) => {
                let bytes =
                    std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                subtitles(&String::from_utf8_lossy(&bytes))
            }
            None => Vec::new(),
        };
        Ok((seconds, Ok(document(id, &meta, frames, &spoken)?)))
    }

    /// What ffprobe says.
    fn probe(&self, path: &Path) -> Result<Metadata> {
        let mut command = Command::new(&self.ffprobe);
        command.args(["-v", "error", "-print_format", "json", "-show_format", "-show_streams"]).arg(path);
        let output = command.stdin(Stdio::null()).output().context("cannot run ffprobe")?;
        ensure!(output.status.success(), "{}", last_line(&output.stderr));
        let all: Value = serde_json::from_slice(&output.stdout).context("what ffprobe printed")?;
        let streams = all["streams"].as_array().map_or(&[][..], Vec::as_slice);
        let of = |kind: &str| streams.iter().find(|s| s["codec_type"] == kind);
        let video = of("video").context("there are no pictures in it")?;
        let text = |v: &Value| v.as_str().map(String::from);
        let number = |v: &Value| v.as_str().and_then(|s| s.parse::<f64>().ok());
        let rate = video["avg_frame_rate"].as_str().and_then(|r| {
            let (a, b) = r.split_once('/')?;
            Some(a.parse::<f64>().ok()? / b.parse::<f64>().ok().filter(|b| *b > 0.0)?)
        });
        let format = &all["format"];
        Ok(Metadata {
            duration: number(&format["duration"]).or_else(|| number(&video["duration"])).unwrap_or(0.0),
            width: video["width"].as_u64().unwrap_or(0) as u32,
            height: video["height"].as_u64().unwrap_or(0) as u32,
            fps: (rate.unwrap_or(0.0) * 1e3).round() / 1e3,
            video_codec: text(&video["codec_name"]).unwrap_or_default(),
            audio_codec: of("audio").and_then(|a| text(&a["codec_name"])),
            title: text(&format["tags"]["title"]),
            bytes: number(&format["size"]).unwrap_or(0.0) as u64,
        })
    }

    /// Frames as JPEG files with their times; in words why there are none.
    fn frames(&self, config: &VideoConfig, path: &Path) -> Result<Result<Vec<Frame>, String>> {
        let dir = tempfile::tempdir().context("cannot create a temporary directory")?;
        let mut filters = match config.frames {
            Frames::Key => String::new(),
            Frames::Scene => format!("select='eq(n,0)+gt(scene,{})',", config.scene_change),
            Frames::Every => {
                format!("select='isnan(prev_selected_t)+gte(t-prev_selected_t,{})',", config.seconds)
            }
        };
        if config.side > 0 {
            let side = config.side;
            filters +=
                &format!("scale='min({side},iw)':'min({side},ih)':force_original_aspect_ratio=decrease,");
        }
        let mut command = Command::new(&self.ffmpeg);
        command.args(["-hide_banner", "-nostdin", "-v", "info", "-threads", "1"]);
        if config.frames == Frames::Key {
            command.args(["-skip_frame", "nokey"]);
        }
        command.arg("-i").arg(path).args(["-map", "0:v:0", "-an", "-sn", "-fps_mode", "passthrough", "-vf"]);
        command.arg(filters + "showinfo");
        command.args(["-q:v", "2", "-flags", "+bitexact", "-f", "image2"]).arg(dir.path().join("%08d.jpg"));
        let output = command.stdin(Stdio::null()).output().context("cannot run ffmpeg")?;
        if !output.status.success() {
            return Ok(Err(last_line(&output.stderr)));
        }
        let log = String::from_utf8_lossy(&output.stderr);
        let times = log.lines().filter(|l| l.contains("showinfo")).filter_map(|line| {
            let rest = line.split_once("pts_time:")?.1.trim_start();
            rest.split(' ').next()?.parse::<f64>().ok()
        });
        let frame = |(i, time): (usize, f64)| {
            let bytes = std::fs::read(dir.path().join(format!("{:08}.jpg", i + 1))).ok()?;
            Some((time, bytes))
        };
        Ok(Ok(times.enumerate().map_while(frame).collect()))
    }
}

fn last_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no reason given").trim().to_string()
}

/// `most` of the frames, evenly.
fn spread<T>(frames: Vec<T>, most: usize) -> Vec<T> {
    let n = frames.len();
    if most == 0 || n <= most {
        return frames;
    }
    let mut taken = 0;
    let is_next = |(i, _): &(usize, T)| {
        *i == taken * n / most && {
            taken += 1;
            true
        }
    };
    frames.into_iter().enumerate().filter(is_next).map(|(_, frame)| frame).collect()
}

/// Frames in order, before each what was said until then.
fn document(id: String, meta: &Metadata, frames: Vec<Frame>, spoken: &[(f64, String)]) -> Result<Sample> {
    let Value::Object(mut map) = serde_json::to_value(meta)? else { bail!("a struct is an object") };
    map.insert("id".into(), json!(id));
    map.insert("times".into(), frames.iter().map(|(t, _)| json!((t * 1e3).round() / 1e3)).collect());
    let (mut parts, mut spoken) = (Vec::new(), spoken.iter().peekable());
    let mut until = |time: f64, parts: &mut Vec<Part>| {
        let mut said = Vec::new();
        while let Some((_, text)) = spoken.next_if(|(t, _)| *t < time) {
            said.push(text.as_str());
        }
        if !said.is_empty() {
            parts.push(Part::Text(said.join("\n")));
        }
    };
    let mut images = Vec::new();
    for (i, (time, bytes)) in frames.into_iter().enumerate() {
        until(time, &mut parts);
        parts.push(Part::Image(i));
        images.push(Image { ending: "jpg".into(), bytes });
    }
    until(f64::INFINITY, &mut parts);
    Ok(Sample { id, images, parts: Some(parts), meta: map, ..Sample::default() })
}

fn subtitle_file(video: &Path) -> Option<PathBuf> {
    ["srt", "vtt"].map(|e| video.with_extension(e)).into_iter().find(|p| p.is_file())
}

/// Lines of a SubRip or WebVTT file with the second each begins at.
fn subtitles(text: &str) -> Vec<(f64, String)> {
    let clock = |text: &str| {
        let mut seconds = 0.0;
        for part in text.trim().split(':') {
            seconds = seconds * 60.0 + part.replace(',', ".").parse::<f64>().ok()?;
        }
        Some(seconds)
    };
    let mut out: Vec<(f64, String)> = Vec::new();
    let text = text.replace("\r\n", "\n");
    for block in text.split("\n\n") {
        let mut lines = block.trim_start_matches('\u{feff}').lines().skip_while(|l| !l.contains("-->"));
        let Some(begin) = lines.next().and_then(|l| clock(l.split("-->").next()?)) else { continue };
        let said: Vec<String> = lines.map(without_tags).filter(|l| !l.is_empty()).collect();
        let said = said.join(" ");
        // Captions that roll repeat what they said before.
        if !said.is_empty() && out.last().is_none_or(|(_, last)| *last != said) {
            out.push((begin, said));
        }
    }
    out
}

/// `<i>so</i>` → `so`.
fn without_tags(line: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in line.chars() {
        match c {
            '<' => inside = true,
            '>' if inside => inside = false,
            c if !inside => out.push(c),
            _ => {}
        }
    }
    out.trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtitles_of_both_kinds_are_read() {
        let srt = "1\r\n00:00:01,500 --> 00:00:02,000\r\n<i>One</i>\r\ntwo\r\n\r\n2\r\n01:00:00,000 --> 01:00:01,000\r\nlast\r\n";
        assert_eq!(subtitles(srt), [(1.5, "One two".into()), (3600.0, "last".into())]);
        let vtt =
            "WEBVTT\n\nNOTE x\n\n00:03.250 --> 00:04.000 align:start\nHi\n\n00:04.000 --> 00:05.000\nHi\n";
        assert_eq!(subtitles(vtt), [(3.25, "Hi".into())]);
    }

    #[test]
    fn frames_are_spread_evenly() {
        for (n, most) in [(10, 3), (7, 7), (100, 64), (5, 0), (3, 1), (65, 64)] {
            let out = spread((0..n).collect(), most);
            assert_eq!(out.len(), if most == 0 { n } else { n.min(most) }, "{n}, {most}");
            assert_eq!(out[0], 0);
            assert!(out.windows(2).all(|w| w[1] > w[0] && w[1] - w[0] <= n.div_ceil(out.len()) + 1));
        }
    }

    #[test]
    fn a_missing_program_is_told() {
        let config = VideoConfig {
            path: Paths::One("x.mp4".into()),
            ffmpeg: "/no/such/ffmpeg".into(),
            ..VideoConfig::default()
        };
        let error = run(&config, Path::new("out")).unwrap_err().to_string();
        assert!(
            error.contains("/no/such/ffmpeg") && error.contains("hint: videos are read by ffmpeg"),
            "{error}"
        );
    }

    /// Two seconds of a test picture that changes, made by ffmpeg itself.
    #[test]
    fn a_real_video_is_taken_apart() {
        let Ok(ffmpeg) = Ffmpeg::find(Path::new("ffmpeg")) else {
            println!("skipped: there is no ffmpeg");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in/a.mp4");
        std::fs::create_dir(dir.path().join("in")).unwrap();
        let source = "testsrc=duration=2:size=320x240:rate=10";
        let made = Command::new(&ffmpeg.ffmpeg)
            .args([
                "-v",
                "error",
                "-f",
                "lavfi",
                "-i",
                source,
                "-g",
                "5",
                "-c:v",
                "mpeg4",
                "-metadata",
                "title=Test",
            ])
            .arg(&path)
            .status()
            .unwrap();
        assert!(made.success());
        std::fs::write(path.with_extension("srt"), "1\n00:00:00,700 --> 00:00:01,000\nHello\n").unwrap();
        std::fs::write(dir.path().join("in/b.mp4"), "no video").unwrap();
        let config =
            VideoConfig { path: Paths::One(dir.path().join("in")), side: 160, ..VideoConfig::default() };
        let out = dir.path().join("out");
        let summary = run(&config, &out).unwrap();
        assert_eq!((summary.videos, summary.kept, summary.frames, summary.shards), (2, 1, 4, 1));
        assert_eq!(summary.dropped["broken"], 1);
        let source = json!([{"kind": "webdataset", "path": out.join("shards")}]);
        let units = crate::images::sample::units(&serde_json::from_value::<Vec<_>>(source).unwrap()).unwrap();
        let mut samples = Vec::new();
        units[0]
            .read(&mut |s| {
                samples.push(s?);
                Ok(std::ops::ControlFlow::Continue(()))
            })
            .unwrap();
        let [sample] = &samples[..] else { panic!("one sample") };
        assert_eq!(sample.meta["times"], json!([0.0, 0.5, 1.0, 1.5]));
        assert_eq!((&sample.meta["title"], &sample.meta["fps"]), (&json!("Test"), &json!(10.0)));
        let parts = sample.parts.as_ref().unwrap();
        assert_eq!(parts[2], Part::Text("Hello".into()));
        let frame = image::load_from_memory(&sample.images[0].bytes).unwrap();
        assert_eq!((frame.width(), frame.height()), (160, 120));
        assert!(run(&config, &out).unwrap().up_to_date);
        for (frames, n) in [(Frames::Every, 4), (Frames::Scene, 1)] {
            let config = VideoConfig { frames, seconds: 0.5, scene_change: 0.9, ..config.clone() };
            let summary = run(&config, &dir.path().join(format!("{frames:?}"))).unwrap();
            assert_eq!(summary.frames, n, "{frames:?}");
        }
    }
}
