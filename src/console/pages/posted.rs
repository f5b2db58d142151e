//! Checks a submitted form before a page gets it: a page with a [`Posted`] argument runs only after every check has passed.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};

use super::refused;
use crate::console::App;
use crate::console::safety::{Form, Visitor, form};

/// A post with the right form token, from a visitor who may act. Any other post is answered before it reaches the page.
pub(crate) struct Posted {
    pub(crate) visitor: Visitor,
    pub(crate) form: Form,
}

impl FromRequest<Arc<App>> for Posted {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        let Some(visitor) = request.extensions().get::<Visitor>().cloned() else {
            return Err(StatusCode::FORBIDDEN.into_response());
        };
        let path = request.uri().path().trim_start_matches('/').to_owned();
        // `actions` itself has no page.
        let back = if path == "actions" { "failed" } else { &path };
        match form(&visitor, request).await {
            Ok(form) => Ok(Self { visitor, form }),
            Err(why) => Err(refused(app, &visitor, &why, back)),
        }
    }
}
