//! Reads Rust far enough for the rules: what is code, what is a comment, and
//! the words and signs of the code.

/// A Rust source, split: `code` without comments and the contents of literals,
/// `comments` without the rest. Both keep every line break.
pub(crate) struct Source {
    pub(crate) code: String,
    pub(crate) comments: String,
}

impl Source {
    pub(crate) fn new(text: &str) -> Self {
        let mut reader = Reader {
            rest: text.chars().collect(),
            at: 0,
            code: String::new(),
            comments: String::new(),
        };
        while reader.at < reader.rest.len() {
            reader.step();
        }
        Self {
            code: reader.code,
            comments: reader.comments,
        }
    }

    /// Identifiers, `::`, and single signs, each with its line.
    pub(crate) fn tokens(&self) -> Vec<(usize, &str)> {
        let mut tokens = Vec::new();
        for (index, line) in self.code.lines().enumerate() {
            let mut rest = line.trim_start();
            while let Some(first) = rest.chars().next() {
                let len = if is_word(first) {
                    rest.find(|c| !is_word(c)).unwrap_or(rest.len())
                } else if rest.starts_with("::") {
                    2
                } else {
                    first.len_utf8()
                };
                tokens.push((index + 1, &rest[..len]));
                rest = rest[len..].trim_start();
            }
        }
        tokens
    }
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

struct Reader {
    rest: Vec<char>,
    at: usize,
    code: String,
    comments: String,
}

impl Reader {
    fn peek(&self, ahead: usize) -> char {
        self.rest.get(self.at + ahead).copied().unwrap_or('\0')
    }

    /// Takes one sign into the code, the comments, or neither.
    fn take(&mut self, code: bool, comment: bool) {
        let c = self.peek(0);
        if code || c == '\n' {
            self.code.push(c);
        }
        if comment || c == '\n' {
            self.comments.push(c);
        }
        self.at += 1;
    }

    fn step(&mut self) {
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => {
                while self.at < self.rest.len() && self.peek(0) != '\n' {
                    self.take(false, true);
                }
            }
            ('/', '*') => self.block_comment(),
            ('"', _) => self.string(),
            ('\'', _) => self.char_or_lifetime(),
            (c, _) if is_word(c) => self.word(),
            _ => self.take(true, false),
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.rest.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => depth += 1,
                ('*', '/') => depth -= 1,
                _ => {
                    self.take(false, true);
                    continue;
                }
            }
            self.take(false, true);
            self.take(false, true);
            if depth == 0 {
                break;
            }
        }
    }

    /// A string with escapes; its quotes stay in the code.
    fn string(&mut self) {
        self.take(true, false);
        while self.at < self.rest.len() && self.peek(0) != '"' {
            let escape = self.peek(0) == '\\';
            self.take(false, false);
            if escape {
                self.take(false, false);
            }
        }
        self.take(true, false);
    }

    fn raw_string(&mut self, hashes: usize) {
        self.at += hashes;
        self.take(true, false);
        while self.at < self.rest.len() {
            let closes = self.peek(0) == '"' && (1..=hashes).all(|i| self.peek(i) == '#');
            if closes {
                self.take(true, false);
                self.at += hashes;
                return;
            }
            self.take(false, false);
        }
    }

    fn char_or_lifetime(&mut self) {
        if self.peek(1) != '\\' && self.peek(2) != '\'' {
            self.take(true, false);
            return;
        }
        self.take(true, false);
        let escape = self.peek(0) == '\\';
        self.take(false, false);
        if escape {
            self.take(false, false);
        }
        while self.at < self.rest.len() && self.peek(0) != '\'' {
            self.take(false, false);
        }
        self.take(true, false);
    }

    /// An identifier, a number, or the prefix of a literal.
    fn word(&mut self) {
        let start = self.at;
        while is_word(self.peek(0)) {
            self.take(true, false);
        }
        let word: String = self.rest[start..self.at].iter().collect();
        if matches!(word.as_str(), "r" | "br" | "cr") {
            let hashes = (0..).take_while(|&i| self.peek(i) == '#').count();
            if self.peek(hashes) == '"' {
                self.raw_string(hashes);
            }
        }
    }
}

#[test]
fn the_reader_tells_code_from_comments_and_literals() {
    let text = "let a = \"unsafe \\\" // no\"; // unsafe\n\
                let b = r#\"a \" unsafe\"#; /* unsafe /* nested */ unsafe */ let c = '\"';\n\
                fn f<'a>(x: &'a str) -> char { '\\'' } unsafe {}\n\
                let d = br##\"\"# unsafe\"##; let e = '\\u{1f600}'; let r#unsafe = 1;";
    let source = Source::new(text);
    let hits: Vec<usize> = source
        .tokens()
        .iter()
        .filter(|t| t.1 == "unsafe")
        .map(|t| t.0)
        .collect();
    assert_eq!(hits, [3, 4], "{}", source.code);
    assert_eq!(source.comments.matches("unsafe").count(), 3);
    assert_eq!(source.code.lines().count(), 4);
    assert!(source.code.contains("let c ="));
}
