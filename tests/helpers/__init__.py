"""What several tests share: small runs and data sets, servers, clusters, and the documents as tests read them."""
