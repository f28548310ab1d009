//! The tools around a pipeline run: why, diff, pii, mix, classifier, signatures.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use intern_data::{classifier, diff, gap, images, mix, pii, seek, signatures, video, why};
use intern_progress::human;

use super::data::{JobArgs, job};

#[derive(Args)]
pub struct WhyArgs {
    /// The directory of an `intern data run`.
    run: PathBuf,
    /// The document's id.
    id: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct DiffArgs {
    /// The directory of a run.
    a: PathBuf,
    /// The directory of another one over the same pages.
    b: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct PiiArgs {
    /// JSON lines with `id` and `text`.
    file: PathBuf,
    /// Print the masked text instead of the findings.
    #[arg(long)]
    mask: bool,
}

#[derive(Args)]
pub struct SignaturesArgs {
    /// JSON lines with `id` and `text`.
    file: PathBuf,
    /// Directory to write.
    #[arg(long)]
    out: PathBuf,
    /// Buckets (bands).
    #[arg(long, default_value_t = 14)]
    bands: usize,
    /// Hashes per bucket (rows).
    #[arg(long, default_value_t = 8)]
    rows: usize,
}

#[derive(Args)]
pub struct SeekArgs {
    /// The corpus: document files or directories.
    #[arg(required = true)]
    documents: Vec<PathBuf>,
    /// Good documents: a file or directory. May be repeated.
    #[arg(long, required = true)]
    seed: Vec<PathBuf>,
    /// How many documents to find.
    #[arg(long, default_value_t = 1000)]
    top: usize,
    /// Directory to write.
    #[arg(long)]
    out: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct GapArgs {
    /// The configuration: documents, and topics with examples and targets.
    config: PathBuf,
    /// Overrides a setting. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct ClassifierArgs {
    #[command(subcommand)]
    command: ClassifierCommand,
}

#[derive(Subcommand)]
enum ClassifierCommand {
    /// Trains a fastText classifier on documents and measures it on held-out ones.
    ///
    /// Writes OUT/model.bin, which fastText reads too, OUT/classifier.json and OUT/report.json.
    #[command(after_help = "Examples:
  intern data classifier train configs/data/classifier.toml --out runs/good
  intern data classifier predict runs/good documents.jsonl")]
    Train(JobArgs),
    /// Prints the labels of documents as JSON lines.
    #[command(after_help = "Examples:
  intern data classifier predict runs/good documents.jsonl
  intern data classifier predict lid.176.ftz documents.jsonl -k 3")]
    Predict(PredictArgs),
}

#[derive(Args)]
struct PredictArgs {
    /// A fastText model (.bin, .ftz) or the directory of a training.
    model: PathBuf,
    /// Documents.
    file: PathBuf,
    /// Labels per document.
    #[arg(short, default_value_t = 1)]
    k: usize,
}

/// Runs `intern data why`.
///
/// # Errors
/// If there is no such run or document.
pub fn why(args: &WhyArgs) -> Result<()> {
    let answer = why::explain(&args.run, &args.id)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&answer)?),
        false => print!("{}", why::pretty(&answer)),
    }
    Ok(())
}

/// Runs `intern data diff`.
///
/// # Errors
/// If a directory holds no documents.
pub fn diff(args: &DiffArgs) -> Result<()> {
    let answer = diff::compare(&args.a, &args.b)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&answer)?),
        false => print!("{}", diff::pretty(&answer)),
    }
    Ok(())
}

/// Runs `intern data pii`.
///
/// # Errors
/// If the file is unreadable or standard output closed.
pub fn pii(args: &PiiArgs) -> Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    pii::report(&args.file, args.mask, &mut out)?;
    Ok(out.flush()?)
}

/// Runs `intern data signatures`.
///
/// # Errors
/// If the file is unreadable or the disk refuses.
pub fn signatures(args: &SignaturesArgs) -> Result<()> {
    let summary = signatures::run(&args.file, &args.out, args.bands, args.rows)?;
    println!(
        "{} documents signed, {} of {} removed as copies",
        summary.signed, summary.removed, summary.documents
    );
    Ok(())
}

/// Runs `intern data seek`.
///
/// # Errors
/// If documents are missing or the disk refuses.
pub fn seek(args: SeekArgs) -> Result<()> {
    intern_progress::set_silent(args.json);
    let config = seek::SeekConfig { seed: args.seed, documents: args.documents, top: args.top };
    let s = seek::run(&config, &args.out)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&s)?);
    } else {
        println!(
            "{} of {} documents, scores {:.2} to {:.2}, in {}",
            s.found,
            s.documents,
            s.scores.0,
            s.scores.1,
            args.out.join("documents").display()
        );
    }
    Ok(())
}

/// Runs `intern data gap`.
///
/// # Errors
/// If the configuration is wrong or documents are missing.
pub fn gap(args: &GapArgs) -> Result<()> {
    let config: gap::GapConfig = crate::config::load(&args.config, &args.sets)?;
    let found = gap::run(&config)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(());
    }
    println!(
        "{:>16} {:>10} {:>12} {:>7} {:>7} {:>12}",
        "topic", "documents", "characters", "share", "target", "to add"
    );
    for t in &found.topics {
        let target = t.target.map_or(String::new(), |x| format!("{:.1} %", 100.0 * x));
        let share = format!("{:.1} %", 100.0 * t.share);
        println!(
            "{:>16} {:>10} {:>12} {share:>7} {target:>7} {:>12}",
            t.name, t.documents, t.characters, t.add
        );
    }
    Ok(())
}

/// Runs `intern data mix`.
///
/// # Errors
/// Whatever the job fails with.
pub fn mix(args: JobArgs) -> Result<()> {
    job(args, mix::run, |s: &mix::Summary| {
        let mut rows = vec![(
            "written".to_string(),
            format!("{} documents, {} characters", s.documents, human(s.characters as f64)),
        )];
        for (name, share) in &s.sources {
            let part = 100.0 * share.characters as f64 / s.characters.max(1) as f64;
            rows.push((
                name.clone(),
                format!(
                    "{part:.1} % of the characters, {} documents, {:.2} epochs",
                    share.documents, share.epochs
                ),
            ));
        }
        rows
    })
}

/// Runs `intern data images`.
///
/// # Errors
/// Whatever the job fails with.
pub fn images(args: JobArgs) -> Result<()> {
    let out = args.out.clone();
    job(args, images::run, |s: &images::Summary| {
        let mut rows = vec![
            ("read".to_string(), format!("{} samples, {} pictures", s.samples, s.images)),
            (
                "kept".into(),
                format!("{} samples, {} pictures, in {} shards", s.kept, s.kept_images, s.shards),
            ),
        ];
        rows.extend(s.dropped.iter().map(|(rule, n)| (rule.clone(), format!("{n} samples dropped"))));
        rows.extend(s.taken_out.iter().map(|(rule, n)| (rule.clone(), format!("{n} pictures taken out"))));
        rows.push(match s.up_to_date {
            true => (String::new(), "already up to date".into()),
            false => ("speed".into(), format!("{} pictures/s", human(s.images_per_second.round()))),
        });
        rows.push(("report".into(), out.join("report.html").display().to_string()));
        rows
    })
}

/// Runs `intern data video`.
///
/// # Errors
/// Whatever the job fails with.
pub fn video(args: JobArgs) -> Result<()> {
    job(args, video::run, |s: &video::Summary| {
        let mut rows = vec![
            ("read".to_string(), format!("{} videos, {} hours", s.videos, human(s.seconds / 3600.0))),
            ("kept".into(), format!("{} videos, {} frames, in {} shards", s.kept, s.frames, s.shards)),
        ];
        rows.extend(s.dropped.iter().map(|(rule, n)| (rule.clone(), format!("{n} videos dropped"))));
        if s.up_to_date {
            rows.push((String::new(), "already up to date".into()));
        }
        rows
    })
}

/// Runs `intern data classifier`.
///
/// # Errors
/// Whatever the job fails with.
pub fn classifier(args: ClassifierArgs) -> Result<()> {
    match args.command {
        ClassifierCommand::Train(args) => job(args, classifier::train, |s: &classifier::Summary| {
            let mut rows = vec![
                ("learned from".to_string(), format!("{} documents", s.documents)),
                ("accuracy".to_string(), format!("{:.4} on {} held-out documents", s.accuracy, s.held_out)),
            ];
            for (label, [p, r, f1]) in &s.labels {
                rows.push((label.clone(), format!("precision {p:.4}, recall {r:.4}, F1 {f1:.4}")));
            }
            rows
        }),
        ClassifierCommand::Predict(args) => {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            classifier::predict(&args.model, &args.file, args.k, &mut out)?;
            Ok(out.flush()?)
        }
    }
}
