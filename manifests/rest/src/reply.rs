//! Answers: bodies, Status errors, headers that every answer carries.
//!
//! Owns the encoding of what was decided; decides nothing. Start at [`Reply`].

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use flotilla_manifests::api_error::{ApiError, Reason};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::negotiate::Encoding;

/// Bytes of one warning; longer ones are cut.
const WARNING_BYTES_MAX: usize = 1024;
/// Warnings of one answer; the rest is left out, and the last one says so.
const WARNINGS_MAX: usize = 16;

/// A whole answer, or one that goes on.
#[derive(Debug)]
pub struct Body {
    source: Source,
    /// Gives the place among the requests or streams back when the answer is gone.
    _permit: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Source {
    Whole(Option<Bytes>),
    Stream(mpsc::Receiver<Bytes>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.source {
            Source::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Stream(chunks) => chunks.poll_recv(context).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.source, Source::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Source::Stream(_) => SizeHint::default(),
        }
    }
}

/// An answer before it is an HTTP response.
#[derive(Debug)]
pub(crate) struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    source: Source,
}

impl Reply {
    pub(crate) fn bytes(status: StatusCode, media_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        let bytes: Bytes = bytes.into();
        Self::of(status, media_type, Source::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }

    pub(crate) fn json(status: StatusCode, encoding: Encoding, value: &impl serde::Serialize) -> Self {
        let mut bytes = Vec::new();
        write_json(value, &mut bytes);
        Self::bytes(status, encoding.media_type(), bytes)
    }

    pub(crate) fn stream(media_type: &'static str, chunks: mpsc::Receiver<Bytes>) -> Self {
        Self::of(StatusCode::OK, media_type, Source::Stream(chunks))
    }

    fn of(status: StatusCode, media_type: &'static str, source: Source) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        Self { status, headers, source }
    }

    pub(crate) fn error(error: &ApiError) -> Self {
        let status = StatusCode::from_u16(error.reason.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut reply = Self::json(status, Encoding::Json, &error.to_status());
        if let Some(seconds) = error.retry_after_seconds {
            reply.headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if error.reason == Reason::Unauthorized {
            reply.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("mutual-tls"));
        }
        reply
    }

    pub(crate) fn with_header(mut self, name: header::HeaderName, text: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(text) {
            self.headers.insert(name, value);
        }
        self
    }

    /// `Warning: 299 - "..."` (RFC 7234), which kubectl prints.
    pub(crate) fn with_warnings(mut self, warnings: &[String]) -> Self {
        for warning in warnings.iter().take(WARNINGS_MAX) {
            self.add_warning(warning);
        }
        if warnings.len() > WARNINGS_MAX {
            self.add_warning(&format!("{} more warnings are not shown", warnings.len() - WARNINGS_MAX));
        }
        self
    }

    fn add_warning(&mut self, warning: &str) {
        if let Ok(value) = HeaderValue::from_bytes(warning_header(warning).as_bytes()) {
            self.headers.append(header::WARNING, value);
        }
    }

    pub(crate) fn into_response(self, permit: Option<OwnedSemaphorePermit>, audit_id: &str) -> Response<Body> {
        let mut response = Response::new(Body { source: self.source, _permit: permit });
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        if let Ok(value) = HeaderValue::from_str(audit_id) {
            response.headers_mut().insert("audit-id", value);
        }
        response
    }
}

/// Appends JSON. What is written here is made of JSON values and plain structures, which always can be.
pub(crate) fn write_json(value: &impl serde::Serialize, out: &mut Vec<u8>) {
    if let Err(error) = serde_json::to_writer(out, value) {
        tracing::error!(%error, "an answer could not be written as JSON");
    }
}

/// A quoted string without control characters, of bounded length.
fn warning_header(warning: &str) -> String {
    let mut text = String::with_capacity(warning.len() + 16);
    text.push_str("299 - \"");
    for letter in warning.chars() {
        if text.len() > WARNING_BYTES_MAX {
            text.push_str("...");
            break;
        }
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            letter if letter.is_control() => text.push(' '),
            letter => text.push(letter),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_quoted_and_bounded() {
        assert_eq!(warning_header("unknown field \"spec.x\"\n"), "299 - \"unknown field \\\"spec.x\\\" \"");
        assert!(warning_header(&"x".repeat(1 << 20)).len() < WARNING_BYTES_MAX + 16);
        let many: Vec<String> = (0..40).map(|number| format!("warning {number}")).collect();
        let reply = Reply::bytes(StatusCode::OK, "text/plain", "ok").with_warnings(&many);
        assert_eq!(reply.headers.get_all(header::WARNING).iter().count(), WARNINGS_MAX + 1);
    }

    #[test]
    fn an_error_is_a_status_with_its_code() {
        let mut error = ApiError::of(Reason::TooManyRequests, "later");
        error.retry_after_seconds = Some(3);
        let response = Reply::error(&error).into_response(None, "a-1");
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "3");
        assert_eq!(response.headers()["audit-id"], "a-1");
        assert_eq!(response.headers()["content-type"], "application/json");
    }
}
