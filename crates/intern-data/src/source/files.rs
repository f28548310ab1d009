//! Paths in a recipe → files, in one order on every machine: a file, a directory
//! (all files below it with fitting extensions), or a pattern with `*`, `?` and `**`; also an
//! `https://` file, or the like under `s3://BUCKET/`, which are fetched into the cache first.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A file of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRef {
    /// Where it is.
    pub path: PathBuf,
    /// Its name within the source, with `/` between parts.
    pub name: String,
}

/// The files `path` stands for, sorted by name. `extensions` (lower case, with dot) filter
/// directories; a file named outright and the matches of a pattern need none.
///
/// # Errors
/// If nothing is there, or nothing fits.
pub fn list(path: &Path, extensions: &[&str]) -> Result<Vec<FileRef>> {
    let text = path.to_string_lossy();
    let mut files = Vec::new();
    if intern_hub::is_remote(&text) {
        // The part before the first pattern is the prefix to search.
        let parts: Vec<&str> = text.split('/').collect();
        let cut =
            if text.starts_with("s3://") { parts.iter().position(|p| p.contains(['*', '?'])) } else { None };
        let (fixed, pattern) = parts.split_at(cut.unwrap_or(parts.len()));
        let pattern = pattern.join("/");
        let fits = |name: &str| match pattern.as_str() {
            "" => extensions.iter().any(|e| name.to_lowercase().ends_with(e)),
            pattern => matches(pattern, name),
        };
        let found =
            intern_hub::fetch_inputs(&fixed.join("/"), &intern_hub::cache_dir()?.join("inputs"), fits)?;
        files.extend(found.into_iter().map(|f| FileRef { path: f.path, name: f.name }));
    } else if path.is_file() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push(FileRef { path: path.to_path_buf(), name });
    } else if path.is_dir() {
        walk(path, "", &mut files)?;
        files.retain(|f| {
            let name = f.name.to_lowercase();
            extensions.iter().any(|e| name.ends_with(e))
        });
    } else if text.contains(['*', '?']) {
        // The part before the first pattern is the directory to search.
        let fixed: PathBuf =
            path.components().take_while(|c| !c.as_os_str().to_string_lossy().contains(['*', '?'])).collect();
        let start = if fixed.as_os_str().is_empty() { PathBuf::from(".") } else { fixed.clone() };
        let pattern = path.strip_prefix(&fixed).unwrap_or(path).to_string_lossy().replace('\\', "/");
        if start.is_dir() {
            walk(&start, "", &mut files)?;
            files.retain(|f| matches(&pattern, &f.name));
        }
    } else {
        bail!(
            "{}: no such file or directory\nhint: check the path; relative paths start at the current directory",
            path.display()
        );
    }
    if files.is_empty() {
        bail!(
            "{}: no files with {}\nhint: check the path and the source's kind",
            path.display(),
            extensions.join(", ")
        );
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// All files below `dir`; hidden ones and temporary files are passed over.
fn walk(dir: &Path, prefix: &str, files: &mut Vec<FileRef>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        let name = format!("{prefix}{name}");
        let kind = std::fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if kind.is_dir() {
            walk(&path, &format!("{name}/"), files)?;
        } else if kind.is_file() {
            files.push(FileRef { path, name });
        }
    }
    Ok(())
}

/// Whether `name` fits `pattern`: `?` one character, `*` any within a part, `**` any parts.
pub fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    // reachable[j]: the pattern so far can end before name[j].
    let mut reachable = vec![false; name.len() + 1];
    reachable[0] = true;
    let mut i = 0;
    while i < pattern.len() {
        let deep = pattern[i..].starts_with(&['*', '*']);
        let star = pattern[i] == '*';
        let mut next = vec![false; name.len() + 1];
        for j in 0..=name.len() {
            if star {
                // `**/` also stands for nothing.
                let step = j > 0 && next[j - 1] && (deep || name[j - 1] != '/');
                next[j] = reachable[j] || step;
            } else if j > 0 && reachable[j - 1] {
                next[j] = (pattern[i] == '?' && name[j - 1] != '/') || pattern[i] == name[j - 1];
            }
        }
        if deep && pattern.get(i + 2) == Some(&'/') {
            // Either no part at all, or parts that end with the slash.
            let through: Vec<bool> = (0..=name.len())
                .map(|j| reachable[j] || (j > 0 && name[j - 1] == '/' && next[j - 1]))
                .collect();
            next = through;
            i += 1;
        }
        reachable = next;
        i += if deep { 2 } else { 1 };
    }
    reachable[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expect) in [
            ("*.html", "a.html", true),
            ("*.html", "x/a.html", false),
            ("**/*.html", "x/y/a.html", true),
            ("**/*.html", "a.html", true),
            ("x/**/b", "x/b", true),
            ("x/**/b", "x/1/2/b", true),
            ("x/**/b", "xb", false),
            ("part-?.gz", "part-1.gz", true),
            ("part-?.gz", "part-11.gz", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expect, "{pattern} {name}");
        }
    }

    #[test]
    fn directories_list_in_name_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.html", "a/c.HTM", "a/x.txt", ".hidden.html", "a.html"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let names = |p: &Path, e: &[&str]| -> Vec<String> {
            list(p, e).unwrap().into_iter().map(|f| f.name).collect()
        };
        assert_eq!(names(dir.path(), &[".html", ".htm"]), ["a.html", "a/c.HTM", "b.html"]);
        assert_eq!(names(&dir.path().join("*.html"), &[]), ["a.html", "b.html"]);
        assert_eq!(names(&dir.path().join("**/*.txt"), &[]), ["a/x.txt"]);
        let error = list(&dir.path().join("gone"), &[]).unwrap_err().to_string();
        assert!(error.contains("gone") && error.contains("hint:"), "{error}");
    }
}
