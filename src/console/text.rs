//! Escaping for HTML: text from messages and from the CRM becomes harmless, and hidden characters become visible.

use std::fmt;

use askama::filters::Escaper;

use crate::visible;

/// The escaper of every template. HTML's special characters become entities. Characters that are invisible or change the
/// direction of text are shown by name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VisibleEscaper;

impl Escaper for VisibleEscaper {
    fn write_escaped_str<W: fmt::Write>(&self, mut to: W, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| self.write_escaped_char(&mut to, c))
    }

    fn write_escaped_char<W: fmt::Write>(&self, mut to: W, c: char) -> fmt::Result {
        match c {
            '<' => to.write_str("&lt;"),
            '>' => to.write_str("&gt;"),
            '&' => to.write_str("&amp;"),
            '"' => to.write_str("&quot;"),
            '\'' => to.write_str("&#39;"),
            '\n' | '\t' => to.write_char(c),
            c if visible::is_hidden(c) => to.write_str(&visible::name(c)),
            c => to.write_char(c),
        }
    }
}

/// Text for a form field. Hidden characters stay, because the form sends them back. Special characters and line ends become
/// references, so that no browser changes them.
pub(crate) fn field(text: &str) -> String {
    let mut field = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '"' | '\'' | '\r' | '\n' => field.push_str(&format!("&#{};", u32::from(c))),
            c => field.push(c),
        }
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let mut out = String::new();
        VisibleEscaper.write_escaped_str(&mut out, text).unwrap();
        out
    }

    #[test]
    fn escaper_shows_scripts_as_text_and_names_hidden_characters() {
        assert_eq!(
            shown("<script>alert('1\"&')</script>"),
            "&lt;script&gt;alert(&#39;1&quot;&amp;&#39;)&lt;/script&gt;"
        );
        assert_eq!(shown("a\u{202e}b\u{9b}c\u{200b}\n"), "a[U+202E]b[U+009B]c[U+200B]\n");
        assert_eq!(field("<\"\u{202e}\n'"), "&#60;&#34;\u{202e}&#10;&#39;");
    }
}
