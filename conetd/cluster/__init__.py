"""The cluster's state on etcd: how etcd is asked, and which key says what."""
