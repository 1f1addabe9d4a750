__global__ void k(float* o, const float* f, const float* in, int n){
  float s[64],p[64];
  #pragma unroll
  for(int i=0;i<64;i++) {s[i]=0; p[i]=in[threadIdx.x*64+i];}
  for(int b=0;b<n;b++){ float x=f[b];
  #pragma unroll
  for(int i=0;i<64;i++) {s[i]=fmaf(p[i],x,s[i]); asm volatile(""::"f"(s[i]));}
  }
  #pragma unroll
  for(int i=0;i<64;i++) o[threadIdx.x*64+i]=s[i];
}
__global__ void kc(float* o, float x, const float* in, int n){
  float s[64],p[64];
  #pragma unroll
  for(int i=0;i<64;i++) {s[i]=0; p[i]=in[threadIdx.x*64+i];}
  for(int b=0;b<n;b++){ 
  #pragma unroll
  for(int i=0;i<64;i++) {s[i]=fmaf(p[i],x,s[i]); asm volatile(""::"f"(s[i]));}
  }
  #pragma unroll
  for(int i=0;i<64;i++) o[threadIdx.x*64+i]=s[i];
}
