output "credentials" {
  description = "Command that gives kubectl access."
  value       = "gcloud container clusters get-credentials ${google_container_cluster.chorus.name} --location ${var.region} --project ${var.project}"
}

output "bucket" {
  description = "Where ensembles and results go."
  value       = "gs://${google_storage_bucket.results.name}"
}

output "registry" {
  description = "Where the image goes: what REGISTRY stands for in infra/."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

output "runs" {
  description = "The identity of runs, to be given access to further buckets."
  value       = local.runs
}
