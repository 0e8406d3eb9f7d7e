//! Why there is no client for an API server.

/// Why there is no connection to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file cannot be read, or is none.
    #[error(
        "kubeconfig {path}: {reason}. Check clientConnection.kubeconfig (or --kubeconfig); \
         leave it empty to use the pod's service account"
    )]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something that the kubeconfig says, or a file that it names, cannot be used.
    #[error("kubeconfig {path}: {reason}")]
    Field {
        /// The file.
        path: String,
        /// The part, its field and what is wrong with it.
        reason: String,
    },
    /// There is no kubeconfig and this is not a pod with a service account.
    #[error(
        "no kubeconfig is given and there is no service account to use ({0}). \
         Set clientConnection.kubeconfig in the configuration file, or run in a pod with a service account"
    )]
    NotInCluster(String),
    /// What a pod has cannot be used.
    #[error("the service account of this pod: {0}")]
    ServiceAccount(String),
    /// What is written as the server is no URL that can be used.
    #[error("{field} {value:?} is not the URL of an API server, such as https://192.0.2.1:6443: {reason}")]
    Server {
        /// Where it is written.
        field: String,
        /// What is written, without a password.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// `proxy-url` of the kubeconfig is no proxy that can be used.
    #[error(
        "kubeconfig {path}: proxy-url {value:?} is not a proxy that can be used: {reason}. \
         Set it to http://HOST:PORT, or take it out"
    )]
    Proxy {
        /// The file.
        path: String,
        /// What is written, without a password.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}
