# Three kinds of nodes: on demand for Ray heads and the operator, spot without GPUs for tasks, spot with GPUs for the
# members. Taints keep everything else off the spot nodes; infra/kuberay/rayjob.yaml tolerates them.

locals {
  scopes     = ["https://www.googleapis.com/auth/cloud-platform"] # what a node may do is decided by IAM alone
  spot_taint = { key = "cloud.google.com/gke-spot", value = "true", effect = "NO_SCHEDULE" }
}

resource "google_container_node_pool" "heads" {
  name           = "heads"
  cluster        = google_container_cluster.chorus.id
  node_locations = var.zones

  autoscaling {
    total_min_node_count = 1
    total_max_node_count = var.cpu_max_nodes
    location_policy      = "BALANCED"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    machine_type    = var.cpu_machine_type
    disk_type       = "pd-balanced"
    disk_size_gb    = 100
    image_type      = "COS_CONTAINERD"
    service_account = google_service_account.nodes.email
    oauth_scopes    = local.scopes
    labels          = { "chorus/pool" = "heads" }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }

    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
  }
}

resource "google_container_node_pool" "tasks" {
  name           = "tasks"
  cluster        = google_container_cluster.chorus.id
  node_locations = var.zones

  autoscaling {
    total_min_node_count = 0
    total_max_node_count = var.task_max_nodes
    location_policy      = "ANY" # spot machines are where they are
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    spot            = true
    machine_type    = var.task_machine_type
    disk_type       = "pd-balanced"
    disk_size_gb    = 200
    image_type      = "COS_CONTAINERD"
    service_account = google_service_account.nodes.email
    oauth_scopes    = local.scopes
    labels          = { "chorus/pool" = "tasks" }

    taint {
      key    = local.spot_taint.key
      value  = local.spot_taint.value
      effect = local.spot_taint.effect
    }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }

    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
  }
}

# GKE taints GPU nodes with nvidia.com/gpu by itself.
resource "google_container_node_pool" "gpus" {
  for_each = var.gpu_pools

  name           = "gpu-${each.key}"
  cluster        = google_container_cluster.chorus.id
  node_locations = var.zones

  autoscaling {
    total_min_node_count = 0
    total_max_node_count = each.value.max_nodes
    location_policy      = "ANY"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    spot            = each.value.spot
    machine_type    = each.value.machine_type
    disk_type       = "pd-balanced"
    disk_size_gb    = each.value.disk_gb
    image_type      = "COS_CONTAINERD"
    service_account = google_service_account.nodes.email
    oauth_scopes    = local.scopes
    labels          = { "chorus/pool" = "gpu-${each.key}" }

    guest_accelerator {
      type  = each.value.accelerator
      count = each.value.count

      gpu_driver_installation_config {
        gpu_driver_version = "LATEST" # the image's CUDA 13 needs a driver of 580 or newer
      }
    }

    dynamic "taint" {
      for_each = each.value.spot ? [local.spot_taint] : []
      content {
        key    = taint.value.key
        value  = taint.value.value
        effect = taint.value.effect
      }
    }

    # The image is over ten gigabytes: nodes stream it instead of waiting for all of it.
    gcfs_config {
      enabled = true
    }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }

    # No secure boot: GPU drivers are loaded as modules when the node starts.
    shielded_instance_config {
      enable_secure_boot          = false
      enable_integrity_monitoring = true
    }
  }

  lifecycle {
    ignore_changes = [node_config[0].taint] # GKE adds nvidia.com/gpu
  }
}
