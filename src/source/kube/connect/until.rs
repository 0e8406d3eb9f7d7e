//! Bodies of answers that end when their server is no longer the one to ask.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::http::Response;
use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::body::{Body, Frame, SizeHint};
use kube::client::DynBody;
use tower::BoxError;

/// The body of an answer, which breaks off when something happens.
struct Until {
    body: Box<DynBody>,
    over: Option<BoxFuture<'static, ()>>,
}

/// Makes the body of an answer break off when `over` does.
pub(super) fn until(over: BoxFuture<'static, ()>, answer: Response<Box<DynBody>>) -> Response<Box<DynBody>> {
    answer.map(|body| Box::new(Until { body, over: Some(over) }) as Box<DynBody>)
}

impl Body for Until {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(over) = &mut self.over else { return Poll::Ready(None) };
        if over.as_mut().poll(context).is_ready() {
            self.over = None;
            return Poll::Ready(Some(Err(io::Error::other("another server is to be asked now").into())));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
