//! Questions a caller asks about itself.

use bytes::Bytes;
use flotilla_manifests::api_error::{ApiError, Reason};
use http::{StatusCode, header};

use super::{Call, Front, body};
use crate::backend::Backend;
use crate::negotiate::{BodyType, Count, Form};
use crate::reply::Reply;
use crate::review::Review;

impl<B: Backend> Front<B> {
    pub(super) fn review(&self, review: Review, call: Call<'_>, bytes: &Bytes) -> Result<Reply, ApiError> {
        let form = Form::of(call.header(header::ACCEPT), Count::One)?;
        let body_type = BodyType::of(call.header(header::CONTENT_TYPE))?;
        let parsed = body::parse(bytes, body_type, flotilla_manifests::admission::FieldValidation::Warn)?;
        let user = call.user.ok_or_else(|| ApiError::of(Reason::Unauthorized, "Unauthorized"))?;
        let answer = review.answer(parsed.value, user, self.authorize.as_ref(), self.backend.kinds())?;
        Ok(Reply::json(StatusCode::CREATED, form.encoding, &answer).with_warnings(&parsed.warnings))
    }
}
