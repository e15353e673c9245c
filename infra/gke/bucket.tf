# Ensembles and results. Access is by IAM alone, never public; what was overwritten or deleted can be brought back
# for a week (soft delete). Objects are not versioned: a rerun rewrites unfinished regions, and each would be kept.

resource "google_storage_bucket" "results" {
  name                        = var.bucket
  location                    = var.region
  storage_class               = "STANDARD"
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  soft_delete_policy {
    retention_duration_seconds = 604800
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      age            = var.scratch_days
      matches_prefix = ["scratch/"]
    }
  }

  # What an upload that was cut left behind.
  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 2
    }
  }

  depends_on = [google_project_service.needed]
}

resource "google_artifact_registry_repository" "images" {
  location      = var.region
  repository_id = var.name
  format        = "DOCKER"
  description   = "The image of Chorus, infra/container/Dockerfile"

  docker_config {
    immutable_tags = true
  }

  depends_on = [google_project_service.needed]
}
