//! `intern data get`: data sets from the hubs.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use intern_data::source::files::matches;
use intern_format::provenance::{self, Provenance};
use intern_hub::{Address, DatasetFile, list_dataset};
use serde_json::json;

#[derive(Args)]
pub struct GetArgs {
    /// hf:ORG/NAME, modelscope:ORG/NAME or opendatalab:ORG/NAME; /PATH for a file or directory of it,
    /// @REVISION for another state than the newest.
    address: String,
    /// Directory to write.
    #[arg(long, required_unless_present = "list")]
    out: Option<PathBuf>,
    /// Only files that fit this pattern (`*`, `?`, `**`). May be repeated.
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// No files that fit this pattern. May be repeated.
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Only tell which files these are, and how large.
    #[arg(long)]
    list: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Fetches, or lists.
///
/// # Errors
/// If the address is none, the hub cannot be reached or denies it, or nothing fits the patterns.
pub fn run(args: &GetArgs) -> Result<()> {
    intern_progress::set_silent(args.json);
    let Some(address) = Address::parse(&args.address)? else {
        bail!(
            "{} is no address at a hub\nhint: hf:ORG/NAME, modelscope:ORG/NAME or opendatalab:ORG/NAME",
            args.address
        );
    };
    let dataset = list_dataset(&address, &crate::model::hub_config()?)?;
    let fits = |file: &DatasetFile| {
        (args.include.is_empty() || args.include.iter().any(|p| matches(p, &file.path)))
            && !args.exclude.iter().any(|p| matches(p, &file.path))
    };
    let all = dataset.files();
    let files: Vec<DatasetFile> = all.iter().filter(|f| fits(f)).cloned().collect();
    if files.is_empty() {
        let some: Vec<&str> = all.iter().map(|f| f.path.as_str()).take(10).collect();
        bail!(
            "{}: none of {} files fits\nhint: --list shows them all: {}{}",
            args.address,
            all.len(),
            some.join(", "),
            if all.len() > some.len() { ", …" } else { "" }
        );
    }
    let total: u64 = files.iter().map(|f| f.size).sum();
    match &args.out {
        Some(out) if !args.list => {
            std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
            dataset.fetch(&files, out)?;
            let record = Provenance {
                command: "data get".into(),
                version: env!("CARGO_PKG_VERSION").into(),
                config: json!({"address": args.address, "include": args.include, "exclude": args.exclude}),
                inputs: [(args.address.clone(), dataset.state().to_owned())].into(),
                counts: [("files".into(), json!(files.len())), ("bytes".into(), json!(total))].into(),
                ..Provenance::default()
            };
            provenance::write(out, &record)?;
        }
        _ => {}
    }
    if args.json {
        let value =
            json!({"address": args.address, "state": dataset.state(), "files": files, "bytes": total});
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    if args.list {
        for file in &files {
            println!("{:>12}  {}", megabytes(file.size), file.path);
        }
    }
    println!("{:>12}  {} files of {}, state {}", megabytes(total), files.len(), all.len(), dataset.state());
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
