//! Recognizes the gateway's command line, and rewrites it so that the gateway stays on loopback.

/// The result of rewriting `entrypoint` or `command` of a service.
#[derive(Debug, PartialEq)]
pub enum Rewritten {
    /// Nothing has to change.
    Same,
    /// The new words.
    Changed(Vec<String>),
    /// The words have to change, but loopgate can't change them. The field is the reason.
    Refused(String),
}

/// The names of shells, whose `-c` option takes a script.
const SHELLS: [&str; 5] = ["sh", "bash", "ash", "dash", "zsh"];
/// What may stand directly before or after a word in a script.
const QUOTES_AND_SEPARATORS: [char; 6] = ['"', '\'', ';', '(', ')', '&'];
/// The endings of the names of variables and flags whose values are secret.
const SECRET: [&str; 5] = ["token", "password", "secret", "key", "passphrase"];

/// Returns whether these words start a gateway: `openclaw gateway`, also in a shell's script, but
/// not a command that talks to a gateway, such as `openclaw gateway call`.
pub fn starts_gateway<'a>(words: impl Iterator<Item = &'a str>) -> bool {
    let words: Vec<&str> = words.flat_map(str::split_whitespace).map(trim_quotes).collect();
    words.iter().enumerate().any(|(at, word)| {
        *word == "gateway"
            && at > 0
            && is_openclaw(words[at - 1])
            && words.get(at + 1).is_none_or(|next| *next == "run" || next.starts_with('-') || !is_plain(next))
    })
}

fn is_openclaw(word: &str) -> bool {
    let name = word.rsplit('/').next().unwrap_or(word);
    ["openclaw", "openclaw.mjs", "index.js", "entry.js", "moltbot", "moltbot.mjs", "clawdbot"].contains(&name)
}

fn is_plain(word: &str) -> bool {
    word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// Returns the words before `gateway`, with which the image also runs other commands of the CLI.
/// Returns `None` if there are no such words, if they are in a script, or if one of the words is a
/// secret, because the words are written into the override.
pub fn words_before_gateway(words: &[String]) -> Option<&[String]> {
    let at = words.iter().position(|word| word == "gateway")?;
    let before = &words[..at];
    let has_secret = name_of_secret(&before.iter().map(String::as_str).collect::<Vec<_>>()).is_some();
    (at > 0 && script_index(words).is_none() && !has_secret).then_some(before)
}

/// Returns the value of the last `--port` in these words; `None` if there is none, or if it is not
/// a port number.
pub fn last_port<'a>(words: impl Iterator<Item = &'a str>) -> Option<u16> {
    let words: Vec<&str> = words.flat_map(str::split_whitespace).map(trim_quotes).collect();
    let value = words.iter().enumerate().rev().find_map(|(at, word)| match word.strip_prefix("--port")? {
        "" => words.get(at + 1).copied(),
        rest => rest.strip_prefix('='),
    });
    value?.parse().ok()
}

/// Rewrites `words` so that the gateway listens on loopback: any `--bind` becomes `--bind
/// loopback`, and `--force` is removed, because it ends every program that listens on the gateway's
/// port number.
pub fn rewrite(words: &[String]) -> Rewritten {
    let (index, old_words, separator) = match script_index(words) {
        Some(at) => (Some(at), split_keeping_spaces(&words[at]), ""),
        None => (None, words.iter().map(String::as_str).collect(), " "),
    };
    let new_words = bind_to_loopback(&old_words);
    if new_words == old_words {
        return Rewritten::Same;
    }
    if let Some(name) =
        name_of_secret(&old_words.iter().copied().filter(|word| !word.trim().is_empty()).collect::<Vec<_>>())
    {
        return Rewritten::Refused(format!(
            "has --bind or --force, and the value of {name}, which loopgate does not write into a file: \
             give it as an environment variable (OPENCLAW_GATEWAY_TOKEN) instead"
        ));
    }
    match index {
        None => Rewritten::Changed(new_words),
        Some(at) => {
            let mut words = words.to_vec();
            words[at] = new_words.join(separator);
            Rewritten::Changed(words)
        }
    }
}

/// Returns the index of a shell's script among `words`.
fn script_index(words: &[String]) -> Option<usize> {
    let shell = words.iter().position(|word| SHELLS.contains(&word.rsplit('/').next().unwrap_or(word)))?;
    let option = words[shell + 1..]
        .iter()
        .position(|word| word.starts_with('-') && !word.starts_with("--") && word.contains('c'))?;
    let at = shell + option + 2;
    (at < words.len()).then_some(at)
}

/// Splits `script` into words and the white space between them, and keeps both.
fn split_keeping_spaces(script: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut remaining = script;
    while let Some(first) = remaining.chars().next() {
        let end = remaining.find(|c: char| c.is_whitespace() != first.is_whitespace()).unwrap_or(remaining.len());
        pieces.push(&remaining[..end]);
        remaining = &remaining[end..];
    }
    pieces
}

/// Sets the value of every `--bind` to `loopback`, and removes `--force`. Quotes and separators of
/// a script around them are kept.
fn bind_to_loopback(pieces: &[&str]) -> Vec<String> {
    let mut rewritten: Vec<String> = Vec::new();
    let mut awaits_bind_value = false;
    for piece in pieces {
        let (before, core, after) = split_quotes(piece);
        if awaits_bind_value && !piece.trim().is_empty() {
            rewritten.push(format!("{before}loopback{after}"));
            awaits_bind_value = false;
        } else if core == "--force" {
            // The white space before it is removed too.
            if rewritten.last().is_some_and(|last| last.trim().is_empty()) {
                rewritten.pop();
            }
            if !before.is_empty() || !after.is_empty() {
                rewritten.push(format!("{before}{after}"));
            }
        } else if let Some(value) = piece[before.len()..].strip_prefix("--bind=") {
            let (quote, _, after) = split_quotes(value);
            rewritten.push(format!("{before}--bind={quote}loopback{after}"));
        } else {
            awaits_bind_value |= core == "--bind" && !after.contains([';', '&', ')']);
            rewritten.push((*piece).to_owned());
        }
    }
    rewritten
}

/// Splits a word of a script into the quotes and separators before it, the word, and those after
/// it.
fn split_quotes(piece: &str) -> (&str, &str, &str) {
    let start = piece.len() - piece.trim_start_matches(QUOTES_AND_SEPARATORS).len();
    let (before, rest) = piece.split_at(start);
    let (core, after) = rest.split_at(rest.trim_end_matches(QUOTES_AND_SEPARATORS).len());
    (before, core, after)
}

/// Returns the name of a secret that is among `words` with its value. A value that refers to a
/// variable, such as `$TOKEN`, is no secret.
fn name_of_secret(words: &[&str]) -> Option<String> {
    let names = |word: &str| {
        let name = trim_quotes(word).trim_start_matches('-').to_ascii_lowercase();
        (!name.contains('/') && SECRET.iter().any(|ending| name.ends_with(ending)))
            .then(|| trim_quotes(word).to_owned())
    };
    let literal = |value: &str| {
        let value = value.trim_start_matches(['"', '\'']);
        value.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '/' | '+' | '='))
    };
    let joined = words
        .iter()
        .filter_map(|word| word.split_once('='))
        .find(|(name, value)| literal(value) && names(name).is_some());
    let separate = || words.windows(2).find(|pair| names(pair[0]).is_some() && literal(pair[1]));
    joined.and_then(|(name, _)| names(name)).or_else(|| separate().and_then(|pair| names(pair[0])))
}

fn trim_quotes(word: &str) -> &str {
    split_quotes(word).1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|&word| word.into()).collect()
    }

    #[test]
    fn gateways_and_other_commands() {
        let table: [(&[&str], bool); 11] = [
            (&["node", "dist/index.js", "gateway", "--bind", "lan"], true),
            (&["openclaw", "gateway"], true),
            (&["openclaw", "gateway", "run", "--force"], true),
            (&["sh", "-c", "openclaw doctor --fix; exec node /app/dist/index.js gateway"], true),
            (&["sh", "-c", "exec openclaw gateway \"$@\""], true),
            (&["node", "dist/index.js"], false),
            (&["openclaw", "gateway", "call", "health"], false),
            (&["openclaw", "gateway", "status"], false),
            (&["nginx", "-g", "daemon off;"], false),
            (&["openclaw", "node", "run", "--host", "gateway"], false),
            (&[], false),
        ];
        for (line, expected) in table {
            assert_eq!(starts_gateway(line.iter().copied()), expected, "{line:?}");
        }
    }

    #[test]
    fn a_command_of_the_cli_never_holds_a_secret() {
        for (line, expected) in [
            (&["node", "dist/index.js", "gateway"][..], Some(&["node", "dist/index.js"][..])),
            (&["env", "OPENCLAW_GATEWAY_TOKEN=hunter2", "node", "dist/index.js", "gateway"], None),
            (&["run-as", "--token", "hunter2", "node", "dist/index.js", "gateway"], None),
            (&["gateway"], None),
        ] {
            assert_eq!(words_before_gateway(&words(line)), expected.map(words).as_deref(), "{line:?}");
        }
    }

    #[test]
    fn ports() {
        for (line, expected) in [
            (&["x", "--port", "18790"][..], Some(18790)),
            (&["--port=3000"], Some(3000)),
            (&["sh", "-c", "openclaw gateway --port 59765 --bind lan"], Some(59765)),
            (&["--port", "18790", "--port=3000"], Some(3000)),
            (&["--port=3000", "--port", "18790"], Some(18790)),
            (&["--port", "x"], None),
            (&["gateway"], None),
        ] {
            assert_eq!(last_port(line.iter().copied()), expected, "{line:?}");
        }
    }

    #[test]
    fn bind_becomes_loopback_and_force_goes() {
        let table: [(&[&str], Option<&[&str]>); 13] = [
            (
                &["node", "x", "gateway", "--bind", "lan", "--port", "1"],
                Some(&["node", "x", "gateway", "--bind", "loopback", "--port", "1"]),
            ),
            (&["openclaw", "gateway", "--bind=lan"], Some(&["openclaw", "gateway", "--bind=loopback"])),
            (
                &["openclaw", "gateway", "run", "--force", "--verbose"],
                Some(&["openclaw", "gateway", "run", "--verbose"]),
            ),
            (&["openclaw", "gateway", "--bind", "loopback"], None),
            (&["openclaw", "gateway"], None),
            (
                &["/bin/sh", "-lc", "set -e\n  exec openclaw gateway \\\n    --bind lan  --force\n"],
                Some(&["/bin/sh", "-lc", "set -e\n  exec openclaw gateway \\\n    --bind loopback\n"]),
            ),
            (
                &["tini", "--", "bash", "-c", "openclaw gateway --bind $$BIND"],
                Some(&["tini", "--", "bash", "-c", "openclaw gateway --bind loopback"]),
            ),
            (&["sh", "-c", "echo --bound lan"], None),
            (
                &["sh", "-c", "openclaw gateway --bind lan; x"],
                Some(&["sh", "-c", "openclaw gateway --bind loopback; x"]),
            ),
            (&["sh", "-c", "(gateway --bind=lan) & x"], Some(&["sh", "-c", "(gateway --bind=loopback) & x"])),
            (&["sh", "-c", "gateway --bind=\"lan\"; x"], Some(&["sh", "-c", "gateway --bind=\"loopback\"; x"])),
            (
                &["sh", "-c", "gateway \"--bind\" 'lan' --force; x"],
                Some(&["sh", "-c", "gateway \"--bind\" 'loopback'; x"]),
            ),
            (&["sh", "-c", "echo --bind; lan"], None),
        ];
        for (line, expected) in table {
            let expected = expected.map_or(Rewritten::Same, |line| Rewritten::Changed(words(line)));
            assert_eq!(rewrite(&words(line)), expected, "{line:?}");
        }
    }

    #[test]
    fn a_line_with_a_secret_is_not_written_and_the_secret_not_shown() {
        let table: [(&[&str], &str); 5] = [
            (&["openclaw", "gateway", "--bind", "lan", "--token", "hunter2"], "--token"),
            (&["openclaw", "gateway", "--bind", "lan", "--token=hunter2"], "--token"),
            (&["sh", "-c", "OPENCLAW_GATEWAY_TOKEN=hunter2 openclaw gateway --bind lan"], "OPENCLAW_GATEWAY_TOKEN"),
            (
                &["sh", "-c", "openclaw config set gateway.auth.password 'hunter2'; openclaw gateway --force"],
                "gateway.auth.password",
            ),
            (&["sh", "-c", "export API_KEY=\"hunter2\" && openclaw gateway --force"], "API_KEY"),
        ];
        for (line, name) in table {
            let Rewritten::Refused(why) = rewrite(&words(line)) else { panic!("{line:?}") };
            assert!(why.contains(name) && !why.contains("hunter2"), "{why}");
        }
        for line in
            [&["openclaw", "gateway", "--token", "hunter2"][..], &["sh", "-c", "T_TOKEN=hunter2 openclaw gateway"]]
        {
            assert_eq!(rewrite(&words(line)), Rewritten::Same, "there is nothing to change in {line:?}");
        }
        let variable = [
            "sh",
            "-c",
            "OPENCLAW_GATEWAY_TOKEN=\"$$(cat /run/secrets/token)\" openclaw gateway --bind lan --token $$T",
        ];
        assert!(matches!(rewrite(&words(&variable)), Rewritten::Changed(_)));
    }
}
