variable "project" {
  description = "Id of the Google Cloud project that pays."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "project: the id (not the name or the number) of a project, e.g. my-lab-123."
  }
}

variable "region" {
  description = "Region of the cluster, the bucket and the image: where the images already are, since reading across regions costs."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region: a region such as europe-west4, not a zone."
  }
}

variable "zones" {
  description = "Zones of the nodes, all in the region and all with the GPUs of gpu_pools (`gcloud compute accelerator-types list`)."
  type        = list(string)

  validation {
    condition     = length(var.zones) > 0 && alltrue([for zone in var.zones : startswith(zone, "${var.region}-")])
    error_message = "zones: at least one, each in the region, e.g. europe-west4-a in europe-west4."
  }
}

variable "name" {
  description = "Name of the cluster and prefix of what belongs to it."
  type        = string
  default     = "chorus"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name: 3 to 20 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "bucket" {
  description = "Name of the bucket for ensembles and results, to be made; unique in the world."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "bucket: 3 to 63 lower-case letters, digits, hyphens and underscores, without gs://."
  }
}

variable "source_buckets" {
  description = "Names of buckets that hold images: runs may read them, and nothing else."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for name in var.source_buckets : !startswith(name, "gs://")])
    error_message = "source_buckets: names without gs://."
  }
}

variable "operators" {
  description = "Networks (CIDR) from which kubectl reaches the control plane, by what they are; the rest of the world does not."
  type        = map(string)

  validation {
    condition     = length(var.operators) > 0 && alltrue([for range in values(var.operators) : can(cidrhost(range, 0)) && !endswith(range, "/0")])
    error_message = "operators: at least one network such as { office = \"203.0.113.0/24\" }, and not the whole internet."
  }
}

variable "gpu_pools" {
  description = "GPU node pools by name. A pool costs nothing while it has no nodes. nvidia-tesla-a100 is on a2-highgpu-1g, nvidia-h100-80gb on a3-highgpu-1g (spot only)."
  type = map(object({
    machine_type = string
    accelerator  = string
    count        = optional(number, 1)
    max_nodes    = number
    spot         = optional(bool, true)
    disk_gb      = optional(number, 200)
  }))
  default = {
    l4 = { machine_type = "g2-standard-8", accelerator = "nvidia-l4", max_nodes = 8 }
  }

  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : contains(["nvidia-l4", "nvidia-tesla-a100", "nvidia-a100-80gb", "nvidia-h100-80gb"], pool.accelerator)])
    error_message = "gpu_pools: accelerator is nvidia-l4, nvidia-tesla-a100, nvidia-a100-80gb or nvidia-h100-80gb."
  }

  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : contains([1, 2, 4, 8, 16], pool.count) && pool.max_nodes >= 1 && pool.max_nodes <= 1000 && pool.disk_gb >= 100])
    error_message = "gpu_pools: count is 1, 2, 4, 8 or 16 GPUs a node, max_nodes 1 to 1000, disk_gb at least 100 (the image alone takes over ten)."
  }
}

variable "cpu_machine_type" {
  description = "Machines of the pool for Ray heads and the operator; on demand, since the run ends with its head."
  type        = string
  default     = "n2-standard-8"
}

variable "cpu_max_nodes" {
  description = "Most nodes of that pool, over all zones."
  type        = number
  default     = 3

  validation {
    condition     = var.cpu_max_nodes >= 1 && var.cpu_max_nodes <= 100
    error_message = "cpu_max_nodes: 1 to 100; a Ray head takes one."
  }
}

variable "task_machine_type" {
  description = "Machines of the spot pool for work without GPUs: pyramids, objects, tables."
  type        = string
  default     = "n2-standard-8"
}

variable "task_max_nodes" {
  description = "Most nodes of that pool, over all zones."
  type        = number
  default     = 8

  validation {
    condition     = var.task_max_nodes >= 1 && var.task_max_nodes <= 1000
    error_message = "task_max_nodes: 1 to 1000."
  }
}

variable "namespace" {
  description = "Kubernetes namespace of the runs, as in infra/kuberay."
  type        = string
  default     = "chorus"
}

variable "service_account" {
  description = "Kubernetes service account of the runs, as in infra/kuberay."
  type        = string
  default     = "chorus"
}

variable "scratch_days" {
  description = "Objects below scratch/ in the bucket are deleted after this many days."
  type        = number
  default     = 14

  validation {
    condition     = var.scratch_days >= 1
    error_message = "scratch_days: at least 1."
  }
}

variable "kuberay_version" {
  description = "Version of the KubeRay operator's chart; manifests are tested against the definitions of 1.7."
  type        = string
  default     = "1.7.0"

  validation {
    condition     = can(regex("^1\\.[0-9]+\\.[0-9]+$", var.kuberay_version))
    error_message = "kuberay_version: a release such as 1.7.0."
  }
}

variable "deletion_protection" {
  description = "Refuse to destroy the cluster; set to false and apply before `terraform destroy`."
  type        = bool
  default     = true
}
