//! What stands behind the question mark of a request.

/// The pairs of a query, decoded, in the order given; a name alone has an empty value.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads a query; `known` are the names that may stand in it.
    ///
    /// # Errors
    /// What makes no sense.
    ///
    /// # Source
    /// RFC 3986, 2.1 and 3.4, with `+` as a space, as forms write it.
    pub fn parse(query: Option<&str>, known: &[&str]) -> Result<Self, String> {
        let mut pairs = Vec::new();
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let decoded = (decode(name)?, decode(value)?);
            if !known.contains(&decoded.0.as_str()) {
                let (name, of) = (decoded.0, if known.is_empty() { "none".to_owned() } else { known.join(", ") });
                return Err(format!("there is no parameter {name} here: {of}"));
            }
            pairs.push(decoded);
        }
        Ok(Self { pairs })
    }

    /// Returns every value of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// Returns the value of a name.
    ///
    /// # Errors
    /// If it is there twice.
    pub fn one<'a>(&'a self, name: &'a str) -> Result<Option<&'a str>, String> {
        let mut all = self.all(name);
        match (all.next(), all.next()) {
            (one, None) => Ok(one),
            (_, Some(_)) => Err(format!("{name} can be said once")),
        }
    }
}

fn decode(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is no text in percent encoding");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16)).ok_or_else(wrong);
                (digit()? * 16 + digit()?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_values_are_decoded() {
        let query =
            Query::parse(Some("if=max%3D20&follow&if=a+b&&service=w%C3%A9b"), &["if", "follow", "service"]).unwrap();

        assert_eq!(query.all("if").collect::<Vec<_>>(), ["max=20", "a b"]);
        assert_eq!(query.one("follow"), Ok(Some("")));
        assert_eq!(query.one("service"), Ok(Some("wéb")));
        assert_eq!(query.one("after"), Ok(None));
        assert!(query.one("if").is_err());
    }

    proptest! {
        #[test]
        fn any_query_is_read_or_refused(query in "[a-b%=&+0-9\\PC]{0,20}") {
            let _read_or_refused = Query::parse(Some(&query), &["a", "b"]);
        }
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        assert_eq!(Query::parse(Some("a=1"), &["b", "c"]).unwrap_err(), "there is no parameter a here: b, c");
        for query in ["b=%", "b=%4", "b=%zz", "b=%ff"] {
            assert!(Query::parse(Some(query), &["b"]).unwrap_err().contains("percent encoding"), "{query}");
        }
        assert_eq!(Query::parse(None, &[]), Ok(Query::default()));
    }
}
