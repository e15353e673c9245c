# One state holds the cluster, its pools, the buckets and the operator: `terraform apply` makes all of it.
# Keep the state where more than one person can reach it, e.g. `terraform { backend "gcs" {} }` in a file of your own
# and `terraform init -backend-config=bucket=...`.

terraform {
  required_version = ">= 1.9, < 2.0"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 7.37"
    }
    helm = {
      source  = "hashicorp/helm"
      version = "~> 3.1"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

data "google_project" "this" {}

data "google_client_config" "me" {}

provider "helm" {
  kubernetes = {
    host                   = "https://${google_container_cluster.chorus.endpoint}"
    token                  = data.google_client_config.me.access_token
    cluster_ca_certificate = base64decode(google_container_cluster.chorus.master_auth[0].cluster_ca_certificate)
  }
}
