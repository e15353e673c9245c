# Who may do what. Nodes: write logs and metrics, fetch the image. Runs (the Kubernetes service account of
# infra/kuberay): read and write objects of the results' bucket, read those of the source buckets. Nothing else.

resource "google_service_account" "nodes" {
  account_id   = "${var.name}-nodes"
  display_name = "Nodes of the GKE cluster ${var.name}"

  depends_on = [google_project_service.needed]
}

resource "google_project_iam_member" "nodes" {
  project = var.project
  role    = "roles/container.defaultNodeServiceAccount"
  member  = google_service_account.nodes.member
}

resource "google_artifact_registry_repository_iam_member" "nodes" {
  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.nodes.member
}

locals {
  pool = "projects/${data.google_project.this.number}/locations/global/workloadIdentityPools/${var.project}.svc.id.goog"
  runs = "principal://iam.googleapis.com/${local.pool}/subject/ns/${var.namespace}/sa/${var.service_account}"
}

resource "google_storage_bucket_iam_member" "runs_write" {
  bucket = google_storage_bucket.results.name
  role   = "roles/storage.objectUser"
  member = local.runs

  depends_on = [google_container_cluster.chorus] # the pool of identities comes with the cluster
}

resource "google_storage_bucket_iam_member" "runs_read" {
  for_each = var.source_buckets

  bucket = each.value
  role   = "roles/storage.objectViewer"
  member = local.runs

  depends_on = [google_container_cluster.chorus]
}
