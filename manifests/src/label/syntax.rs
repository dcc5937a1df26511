//! The syntax of names, of label keys and of label values (RFC 1123; Kubernetes' "Object Names and IDs", "Labels").

const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const QUALIFIED: &str = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const DNS_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LONG_63: &str = "must be no more than 63 bytes";
const LONG_253: &str = "must be no more than 253 bytes";

/// A label's or annotation's key: `name` or `prefix.example.com/name`. For annotations, lower-case it first.
pub fn qualified_name(text: &str) -> Result<(), &'static str> {
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => return Err(QUALIFIED),
        Some(("", _)) => return Err("prefix part must be non-empty"),
        Some((prefix, name)) => {
            dns_subdomain(prefix)?;
            name
        }
    };
    if name.is_empty() {
        return Err("name part must be non-empty");
    }
    if name.len() > 63 {
        return Err("name part must be no more than 63 bytes");
    }
    if framed(name, is_name_byte) { Ok(()) } else { Err(NAME_PART) }
}

/// A label's value: empty, or up to 63 bytes of `[A-Za-z0-9_.-]` with an alphanumeric at both ends.
pub fn label_value(text: &str) -> Result<(), &'static str> {
    if text.len() > 63 {
        return Err(LONG_63);
    }
    if text.is_empty() || framed(text, is_name_byte) { Ok(()) } else { Err(LABEL_VALUE) }
}

/// RFC 1123 label: names of namespaces and containers.
pub fn dns_label(text: &str) -> Result<(), &'static str> {
    if text.len() > 63 {
        return Err(LONG_63);
    }
    if is_dns_label(text) { Ok(()) } else { Err(DNS_LABEL) }
}

/// RFC 1123 subdomain: names of most objects.
pub fn dns_subdomain(text: &str) -> Result<(), &'static str> {
    if text.len() > 253 {
        return Err(LONG_253);
    }
    if text.split('.').all(is_dns_label) { Ok(()) } else { Err(DNS_SUBDOMAIN) }
}

fn is_dns_label(text: &str) -> bool {
    framed(text, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// Not empty, all bytes allowed, an alphanumeric at both ends.
fn framed(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric)) && bytes.iter().all(|byte| allowed(*byte))
}
