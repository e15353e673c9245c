resource "helm_release" "kuberay" {
  name             = "kuberay-operator"
  repository       = "https://ray-project.github.io/kuberay-helm/"
  chart            = "kuberay-operator"
  version          = var.kuberay_version
  namespace        = "ray-system"
  create_namespace = true
  atomic           = true

  values = [yamlencode({
    nodeSelector = { "chorus/pool" = "heads" }
    resources = {
      requests = { cpu = "100m", memory = "512Mi" }
      limits   = { cpu = "500m", memory = "512Mi" }
    }
  })]

  depends_on = [google_container_node_pool.heads]
}
